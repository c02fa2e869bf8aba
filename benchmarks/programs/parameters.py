import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
ps = nn.ParameterList([nn.Parameter(torch.randn(8) / 8) for _ in range(5000)])
opt = torch.optim.Adam(ps.parameters(), lr=1e-2)
x = torch.randn(5000, 8)
for step in range(4):
    opt.zero_grad()
    y = 0
    for i, p in enumerate(ps):
        y = y + (p * x[i]).sum() ** 2
    loss = (y - 1).abs()
    loss.backward()
    opt.step()
print(float(loss))
