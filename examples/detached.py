"""An autoencoder whose encoder never learns: its output is detached on the only way to the loss."""

import torch
from torch import nn

torch.manual_seed(0)


class AutoEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
        self.decoder = nn.Linear(4, 16)

    def forward(self, x):
        z = self.encoder(x).detach()
        return self.decoder(z)


model = AutoEncoder()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

for _ in range(20):
    x = torch.randn(32, 16)
    loss = nn.functional.mse_loss(model(x), x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
