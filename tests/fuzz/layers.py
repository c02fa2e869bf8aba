"""Layers: each gives an expression for a module that maps (batch, 6) to (batch, 6)."""

from __future__ import annotations

from tests.fuzz.program import Ingredients, Program

layer = Ingredients("layer")


@layer(weight=4)
def linear(program: Program) -> str:
    return f"nn.Linear(6, 6, bias={program.pick(True, True, False)})"


@layer(weight=4)
def activation(program: Program) -> str:
    return program.pick(
        "nn.ReLU(inplace=True)",
        "nn.ReLU()",
        "nn.Tanh()",
        "nn.Sigmoid()",
        "nn.GELU()",
        "nn.SiLU(inplace=True)",
        "nn.ELU()",
        "nn.LeakyReLU(0.1, inplace=True)",
        "nn.Softplus()",
        "nn.PReLU()",
        "nn.Hardswish()",
        "nn.RReLU()",
        "nn.Softmax(1)",
        "nn.LogSoftmax(1)",
        "nn.Mish()",
        "nn.CELU()",
        "nn.Hardtanh(inplace=True)",
        "nn.Softsign()",
        "nn.Threshold(0.1, 0.0)",
        "nn.Softshrink(0.1)",
        "nn.Tanhshrink()",
        "nn.SELU(inplace=True)",
        "nn.LogSigmoid()",
        "nn.Softmin(1)",
    )


@layer(weight=2)
def normalisation(program: Program) -> str:
    return program.pick(
        "nn.BatchNorm1d(6)",
        "nn.BatchNorm1d(6, track_running_stats=False)",
        "nn.BatchNorm1d(6, affine=False)",
        "nn.LayerNorm(6)",
        "nn.LayerNorm(6, elementwise_affine=False)",
        "nn.GroupNorm(2, 6)",
        "nn.RMSNorm(6)",
        "nn.BatchNorm1d(6, momentum=None)",
    )


@layer
def dropout(program: Program) -> str:
    return program.pick("nn.Dropout(0.3)", "nn.Dropout(0.2, inplace=True)", "nn.AlphaDropout(0.1)", "nn.Dropout(1.0)")


@layer
def identity(program: Program) -> str:
    return program.pick("nn.Identity()", "nn.Sequential()", "nn.Flatten()")


@layer
def convolution(program: Program) -> str:
    """A convolution along the features."""
    program.define(
        """
        class Along(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return self.inner(x[:, None, :]).mean(1)
        """
    )
    return program.pick(
        "Along(nn.Conv1d(1, 2, 3, padding=1))",
        "Along(nn.Conv1d(1, 3, 3, padding='same', padding_mode='circular'))",
        "Along(nn.ConvTranspose1d(1, 2, 3, padding=1))",
        "Along(nn.Sequential(nn.Conv1d(1, 4, 1), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Conv1d(4, 4, 3, padding=1, groups=2)))",
        "Along(nn.Sequential(nn.AvgPool1d(2), nn.Upsample(scale_factor=2)))",
        "Along(nn.Sequential(nn.MaxPool1d(2), nn.ConvTranspose1d(1, 1, 2, stride=2)))",
        "Along(nn.LazyConv1d(2, 3, padding=1))",
        "Along(nn.Sequential(nn.ReflectionPad1d(1), nn.Conv1d(1, 1, 3), nn.InstanceNorm1d(1, affine=True)))",
    )


@layer
def picture(program: Program) -> str:
    """Two-dimensional parts: the features as a picture of two by three."""
    program.define(
        """
        class Picture(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return self.inner(x.reshape(-1, 1, 2, 3)).sum(1).flatten(1)
        """
    )
    return program.pick(
        "Picture(nn.Conv2d(1, 2, 3, padding=1))",
        "Picture(nn.Sequential(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.SiLU()))",
        "Picture(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Dropout2d(0.2)))",
        "Picture(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Upsample(size=(2, 3), mode='bilinear')))",
        "Picture(nn.Sequential(nn.Conv2d(1, 4, 1), nn.PixelShuffle(2), nn.MaxPool2d(2)))",
        "Picture(nn.Sequential(nn.Unfold(1), nn.Fold((2, 3), 1), nn.LocalResponseNorm(2)))",
        "Picture(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(1, 2, 3).to(memory_format=torch.channels_last)))",
    )


@layer
def recurrent(program: Program) -> str:
    """A recurrent part over the features as a sequence."""
    program.define(
        """
        class Recurrent(nn.Module):
            def __init__(self, inner, two_states=False):
                super().__init__()
                self.inner, self.two_states = inner, two_states

            def forward(self, x):
                out, last = self.inner(x[:, :, None])
                return out.mean(2) + (last[0] if self.two_states else last).sum()
        """
    )
    return program.pick(
        "Recurrent(nn.GRU(1, 3, batch_first=True))",
        "Recurrent(nn.LSTM(1, 2, batch_first=True, bidirectional=True), True)",
        "Recurrent(nn.RNN(1, 3, num_layers=2, batch_first=True, dropout=0.1))",
        "Recurrent(nn.LSTM(1, 4, batch_first=True, proj_size=2), True)",
    )


@layer
def cell(program: Program) -> str:
    program.define(
        """
        class Cells(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell = nn.GRUCell(2, 6)
                self.start = nn.Parameter(torch.zeros(6))

            def forward(self, x):
                state = self.start.expand(len(x), 6)
                for part in x.chunk(3, 1):
                    state = self.cell(part, state)
                return state
        """
    )
    return "Cells()"


@layer
def attention(program: Program) -> str:
    """Attention between the rows of the batch."""
    program.define(
        """
        class Rows(nn.Module):
            def __init__(self, inner, heads=False):
                super().__init__()
                self.inner, self.heads = inner, heads

            def forward(self, x):
                rows = x[None]
                return (self.inner(rows, rows, rows)[0] if self.heads else self.inner(rows))[0]
        """
    )
    return program.pick(
        "Rows(nn.MultiheadAttention(6, 2, batch_first=True), True)",
        "Rows(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True))",
        "Rows(nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True, norm_first=True), 2, enable_nested_tensor=False))",
        "Rows(nn.MultiheadAttention(6, 3, add_bias_kv=True, batch_first=True), True)",
    )


@layer
def embedding(program: Program) -> str:
    program.define(
        """
        class Looked(nn.Module):
            def __init__(self, table):
                super().__init__()
                self.table = table

            def forward(self, x):
                return x + self.table((x.detach().abs() * 3).long().clamp(0, 4)[:, :1]).reshape(len(x), -1)
        """
    )
    return program.pick(
        "Looked(nn.Embedding(5, 6))",
        "Looked(nn.Embedding(5, 6, padding_idx=0))",
        "Looked(nn.Embedding(5, 6, max_norm=1.0))",
        "Looked(nn.EmbeddingBag(5, 6, mode='sum'))",
        "Looked(nn.Embedding(5, 6, scale_grad_by_freq=True))",
    )


@layer
def residual(program: Program) -> str:
    """Layers within a layer."""
    program.define(
        """
        class Residual(nn.Module):
            def __init__(self, *layers):
                super().__init__()
                self.layers = nn.ModuleList(layers)
                self.scale = nn.Parameter(torch.tensor(0.5))

            def forward(self, x):
                for layer in self.layers:
                    x = x + self.scale * layer(x)
                return x
        """
    )
    inner = ", ".join(str(layer.draw(program)) for _ in range(program.pick(1, 2)))
    return f"Residual({inner})"


@layer
def branches(program: Program) -> str:
    """A ModuleDict whose branches are chosen by what the data says, so that some may not be used."""
    program.define(
        """
        class Branches(nn.Module):
            def __init__(self, **layers):
                super().__init__()
                self.layers = nn.ModuleDict(layers)

            def forward(self, x):
                return self.layers["left" if x.sum() > 0 else "right"](x)
        """
    )
    return f"Branches(left={layer.draw(program)}, right={layer.draw(program)})"


@layer
def bilinear(program: Program) -> str:
    program.define(
        """
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.pair = nn.Bilinear(6, 6, 6)

            def forward(self, x):
                return self.pair(x, x.flip(1))
        """
    )
    return "Twice()"


@layer
def own_parameters(program: Program) -> str:
    """Parameters in lists and dicts, with buffers that are changed in forward."""
    program.define(
        """
        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.weights = nn.ParameterList([torch.eye(6), torch.randn(6, 6) / 4])
                self.biases = nn.ParameterDict({"low": torch.zeros(6), "not used": torch.ones(6)})
                self.register_buffer("calls", torch.zeros((), dtype=torch.long))
                self.register_buffer("mean", torch.zeros(6), persistent=False)

            def forward(self, x):
                self.calls += 1
                with torch.no_grad():
                    self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
                for weight in self.weights:
                    x = x @ weight
                return torch.addmm(self.biases["low"], x - self.mean, self.weights[0])
        """
    )
    return "Own()"


@layer
def parametrized(program: Program) -> str:
    return program.pick(
        "torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))",
        "torch.nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))",
        "torch.nn.utils.parametrizations.orthogonal(nn.Linear(6, 6))",
        "torch.nn.utils.spectral_norm(nn.Linear(6, 6))",
        "torch.nn.utils.prune.l1_unstructured(nn.Linear(6, 6), 'weight', 0.4)",
    )


@layer
def tied(program: Program) -> str:
    program.define(
        """
        def tied():
            first, second = nn.Linear(6, 6), nn.Linear(6, 6)
            second.weight = first.weight
            return nn.Sequential(first, nn.Tanh(), second)
        """
    )
    return "tied()"


@layer
def odd_names(program: Program) -> str:
    """Names that no identifier could be."""
    program.define(
        r"""
        class Odd(nn.Module):
            def __init__(self, name):
                super().__init__()
                self.add_module(name, nn.Linear(6, 6))
                self.register_parameter(name + " of mine", nn.Parameter(torch.ones(6)))

            def forward(self, x):
                for child in self.children():
                    x = child(x)
                for name, parameter in self.named_parameters(recurse=False):
                    x = x * parameter
                return x
        """
    )
    name = program.pick(
        "a b",
        "x\\n::error::y",
        "\\x1b[31mred",
        "b\\u202ecod",
        "<b>|`@you`",
        "",
        "näme",
        "0",
        "[link](//x)",
        "a" * 70,
        "%s{}",
    )
    return f'Odd("{name or "_"}")'


@layer
def scripted(program: Program) -> str:
    return program.pick(
        "torch.jit.script(nn.Linear(6, 6))", "torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))"
    )


@layer
def compiled(program: Program) -> str:
    """A compiled part; the backends that generate no code are quick."""
    backend = program.pick("eager", "eager", "eager", "aot_eager")
    full = program.pick("", "", ", fullgraph=True", ", dynamic=True")
    program.define(
        """
        class Arithmetic(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(6, 6)

            def forward(self, x):
                h = torch.sigmoid(self.inner(x))
                h = h * (1 - h) + h**2
                return h.unflatten(1, (2, 3)).flatten(1) / (1 + x.abs())
        """
    )
    inner = program.pick(
        "Arithmetic()", "nn.Sequential(nn.Linear(6, 6), nn.Tanh())", "nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))"
    )
    return f"torch.compile({inner}, backend='{backend}'{full})"


@layer
def functional(program: Program) -> str:
    """A chain of functions, of those that users write in forward."""
    program.define(
        """
        class Chain(nn.Module):
            def __init__(self, *functions):
                super().__init__()
                self.functions = functions

            def forward(self, x):
                for function in self.functions:
                    x = function(x)
                return x
        """
    )
    functions = (
        "lambda x: x.clone().mul_(0.5)",
        "lambda x: x - x.mean(0, keepdim=True)",
        "lambda x: x.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6)",
        "lambda x: torch.cat([x[:, :3], x[:, 3:].detach()], 1)",
        "lambda x: torch.where(x > 0, x, 0.1 * x)",
        "lambda x: x.masked_fill(x > 2, 1.0)",
        "lambda x: F.normalize(x, dim=1)",
        "lambda x: x.cumsum(1) / 6",
        "lambda x: x.sort(1).values",
        "lambda x: torch.stack(x.unbind(1), 1)",
        "lambda x: torch.einsum('bi,bj->bi', x, x)",
        "lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-6)",
        "lambda x: x.roll(1, 1)",
        "lambda x: torch.fft.irfft(torch.fft.rfft(x), n=6)",
        "lambda x: torch.linalg.solve(torch.eye(6) * 2, x.T).T",
        "lambda x: x.to(torch.float16).to(x.dtype)",
        "lambda x: torch.lerp(x, x.flip(0), 0.5)",
        "lambda x: x.exp().log1p()",
        "lambda x: F.dropout(x, 0.2)",
        "lambda x: F.pad(x, (1, -1))",
        "lambda x: x.index_select(1, torch.tensor([5, 4, 3, 2, 1, 0]))",
        "lambda x: x.scatter(1, torch.zeros(len(x), 1, dtype=torch.long), 0.5)",
        "lambda x: torch.logsumexp(x[:, :, None] + x[:, None, :], 2)",
        "lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(-1, 3, 2).contiguous())).flatten(1)",
        "lambda x: x.float().double().to(x.dtype)",
        "lambda x: torch.nan_to_num(x / x)",
        "lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])[0]",
        "lambda x: 1 / (2 + x**2)",
        "lambda x: torch.clamp(x, min=x.detach().mean())",
        "lambda x: x.abs().sqrt()",
        "lambda x: F.gumbel_softmax(x, hard=True)",
    )
    chosen = [program.pick(*functions) for _ in range(program.pick(1, 2, 3))]
    return f"Chain({', '.join(chosen)})"
