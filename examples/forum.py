"""A plain tensor is optimised, without any `nn.Module`.

Only `tensor` is trained: it requires grad and the optimizer holds it. `cte1` and `cte2` are constants, and no
gradient is expected of them. `output` is the result of an operation, so it is no leaf.

    gradscope explain examples/forum.py
"""

import torch

torch.manual_seed(0)

tensor = torch.ones(3, 5).requires_grad_()
cte1 = torch.rand(5, 3)
cte2 = torch.rand(5, 5)
optimizer = torch.optim.SGD([tensor], lr=1)

for _ in range(5):
    optimizer.zero_grad()
    output = cte1 @ tensor + cte2
    output.sum().backward()
    optimizer.step()

print(tensor)
