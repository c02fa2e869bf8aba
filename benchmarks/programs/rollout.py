import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
policy = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
opt = torch.optim.Adam(policy.parameters(), lr=1e-2)
A = torch.eye(4) + 0.02 * torch.randn(4, 4)
for episode in range(30):
    state = torch.randn(4)
    logps, rewards = [], []
    for _ in range(150):
        logits = policy(state)
        dist = torch.distributions.Categorical(logits=logits)
        a = dist.sample()
        logps.append(dist.log_prob(a))
        state = A @ state
        state[0] += 0.1 * (2.0 * a - 1.0)
        state = state.clamp(-3, 3)
        rewards.append(-float(state.pow(2).sum()))
    ret, out = 0.0, []
    for r in reversed(rewards):
        ret = r + 0.95 * ret
        out.append(ret)
    ret = torch.tensor(out[::-1])
    ret = (ret - ret.mean()) / (ret.std() + 1e-6)
    loss = -(torch.stack(logps) * ret).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
print(float(loss))
