import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
X = torch.randn(8000, 8)
Y = torch.randint(3, (8000,))


def evaluate():
    net.eval()
    right = 0
    tot = 0.0
    with torch.no_grad():
        for i in range(8000):
            logits = net(X[i : i + 1])
            p = logits.softmax(-1)
            right += (p.argmax(-1) == Y[i : i + 1]).sum().item()
            tot += p.max().item()
    net.train()
    return right / 8000


print(evaluate())
for epoch in range(60):
    idx = torch.randint(8000, (64,))
    opt.zero_grad()
    loss = nn.functional.cross_entropy(net(X[idx]), Y[idx])
    loss.backward()
    opt.step()
print(float(loss))
