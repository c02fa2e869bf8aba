import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)


class F(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, t, y):
        return self.net(y**3)


def rk4(f, t, dt, y):
    k1 = f(t, y)
    k2 = f(t + dt / 2, tuple(a + dt / 2 * b for a, b in zip(y, k1)))
    k3 = f(t + dt / 2, tuple(a + dt / 2 * b for a, b in zip(y, k2)))
    k4 = f(t + dt, tuple(a + dt * b for a, b in zip(y, k3)))
    return tuple(a + dt / 6 * (p + 2 * q + 2 * r + s) for a, p, q, r, s in zip(y, k1, k2, k3, k4))


def odeint(f, y, ts, n=4):
    out = [y]
    for t0, t1 in zip(ts[:-1], ts[1:]):
        dt = (t1 - t0) / n
        for i in range(n):
            y = rk4(f, t0 + i * dt, dt, y)
        out.append(y)
    return out


class Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, func, y0, ts, *params):
        with torch.no_grad():
            ys = torch.stack([y[0] for y in odeint(lambda t, y: (func(t, y[0]),), (y0,), ts)])
        ctx.func = func
        ctx.save_for_backward(ts, ys, *params)
        return ys

    @staticmethod
    def backward(ctx, g):
        ts, ys, *params = ctx.saved_tensors
        func = ctx.func
        params = tuple(params)

        def aug(t, state):
            y, a = state[0], state[1]
            with torch.enable_grad():
                y = y.detach().requires_grad_(True)
                f = func(t, y)
                vy, *vp = torch.autograd.grad(f, (y, *params), -a, allow_unused=True)
            return (f.detach(), vy, *vp)

        with torch.no_grad():
            a = g[-1]
            gp = tuple(torch.zeros_like(p) for p in params)
            for i in range(len(ts) - 1, 0, -1):
                state = odeint(aug, (ys[i], a, *gp), torch.stack([ts[i], ts[i - 1]]))[-1]
                a, gp = state[1] + g[i - 1], state[2:]
        return (None, a, None, *gp)


func = F()
opt = torch.optim.RMSprop(func.parameters(), lr=1e-3)
ts = torch.linspace(0, 1, 10)
A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
y0 = torch.tensor([[2.0, 0.0]])
with torch.no_grad():
    true = torch.stack([y[0] for y in odeint(lambda t, y: (y[0] ** 3 @ A,), (y0,), ts)])
for _ in range(8):
    opt.zero_grad()
    pred = Adjoint.apply(func, y0, ts, *func.parameters())
    loss = (pred - true).abs().mean()
    loss.backward()
    opt.step()
print(float(loss))
