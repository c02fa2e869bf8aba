import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
net = nn.Sequential(
    nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)
)
x = torch.rand(400, 1, requires_grad=True)
t = torch.rand(400, 1, requires_grad=True)
x0 = torch.rand(100, 1)
u0 = torch.sin(3.14159 * x0)
opt = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=40, history_size=20, line_search_fn="strong_wolfe")


def g(y, v):
    return torch.autograd.grad(y, v, torch.ones_like(y), create_graph=True)[0]


def closure():
    opt.zero_grad()
    u = net(torch.cat([x, t], 1))
    ut, ux = g(u, t), g(u, x)
    uxx = g(ux, x)
    res = ut + u * ux - 0.01 / 3.14159 * uxx
    ini = net(torch.cat([x0, torch.zeros_like(x0)], 1)) - u0
    loss = res.pow(2).mean() + ini.pow(2).mean()
    loss.backward()
    return loss


for _ in range(12):
    loss = opt.step(closure)
print(float(loss))
