"""Episodes: short pieces that stand alone, each the body of a function, and the ways in which such a function is called."""

from __future__ import annotations

from tests.fuzz.program import Ingredients, Program

episode = Ingredients("episode")
way = Ingredients("way")
ending = Ingredients("ending")


@episode(weight=2)
def custom_function(program: Program) -> str:
    return f"""
        class Scaled(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, factor):
                ctx.save_for_backward(x)
                ctx.factor = factor
                {program.pick("return x * factor", "return x * factor, (x > 0)", "ctx.mark_non_differentiable(x > 0); return x * factor", "ctx.set_materialize_grads(False); return x * factor")}

            @staticmethod
            {program.pick("", "@torch.autograd.function.once_differentiable")}
            def backward(ctx, *grads):
                print("needs", ctx.needs_input_grad, len(ctx.saved_tensors))
                (x,) = ctx.saved_tensors
                g = grads[0]
                return {program.pick("g * ctx.factor, None", "None, None", "g * ctx.factor * (x * 0 + 1), None", "g.clone(), None", "g[:1], None", "g * ctx.factor")}

        w = torch.ones(3, requires_grad=True)
        out = Scaled.apply({program.pick("w", "w * 2", "w.detach()", "w[:2]", "w.view(3, 1)")}, {program.pick("2.0", "3", "torch.tensor(2.0)")})
        out = out if isinstance(out, torch.Tensor) else out[0]
        show("out", out)
        attempt("backward", lambda: out.sum().backward())
        show("grad", w.grad)
        attempt("second", lambda: torch.autograd.grad(torch.autograd.grad(Scaled.apply(w, 2.0)[0].sum() ** 2, w, create_graph=True)[0].sum(), w))
    """


@episode
def function_with_dirty(program: Program) -> str:
    return f"""
        class Doubled(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.mark_dirty(x)
                return x.mul_(2)

            @staticmethod
            def backward(ctx, g):
                return g * 2

        a = torch.randn(4, requires_grad=True)
        b = a * 2
        v = {program.pick("b", "b[:2]", "b.view(2, 2)", "b.clone()")}
        v = Doubled.apply(v)
        show("dirty", v, b)
        attempt("backward", lambda: (v.sum() + b.sum()).backward())
        show("grad", a.grad)
        attempt("leaf", lambda: Doubled.apply(a))
    """


@episode
def function_with_setup(program: Program) -> str:
    return f"""
        class Cubed(torch.autograd.Function):
            {program.pick("generate_vmap_rule = True", "pass")}

            @staticmethod
            def forward(x):
                return x**3, x.detach() * 2

            @staticmethod
            def setup_context(ctx, inputs, output):
                ctx.mark_non_differentiable(output[1])
                ctx.save_for_backward(*inputs)

            @staticmethod
            def backward(ctx, g, _):
                return 3 * ctx.saved_tensors[0] ** 2 * g

        w = torch.arange(3.0, requires_grad=True)
        first, second = Cubed.apply(w)
        show("cubed", first, second)
        attempt("vmap", lambda: torch.vmap(lambda r: Cubed.apply(r)[0])(torch.ones(2, 3)))
        attempt("grad", lambda: torch.func.grad(lambda r: Cubed.apply(r)[0].sum())(torch.ones(3)))
        first.sum().backward()
        show("grad", w.grad)
        attempt("gradcheck", lambda: torch.autograd.gradcheck(lambda r: Cubed.apply(r)[0], torch.ones(2, dtype=torch.double, requires_grad=True)))
    """


@episode(weight=2)
def views(program: Program) -> str:
    view = program.pick(
        "a[:2]",
        "a.view(2, 2)",
        "a.T",
        "a.diagonal()",
        "a[..., None]",
        "a.expand(2, 4, 4)[0]",
        "a.unfold(0, 2, 1)",
        "a.split(2)[0]",
        "a.detach()",
        "a.data",
        "a.narrow(0, 1, 2)",
        "a.view_as(a)",
        "a.unbind()[0]",
        "a.as_strided((2, 2), (1, 4))",
        "a.real",
        "a.select(0, 1)",
        "a.permute(1, 0)",
        "a.squeeze()",
    )
    change = program.pick(
        "v.mul_(2)",
        "v.zero_()",
        "v += 1",
        "v[0] = 5.0",
        "a.mul_(2)",
        "a.detach().add_(1)",
        "v.copy_(torch.zeros_like(v))",
        "v.requires_grad_()",
        "a.t_()",
        "v.detach_()",
        "v.neg_().neg_()",
    )
    return f"""
        leaf = torch.randn(4, 4, requires_grad=True)
        a = leaf * {program.pick("1", "2.0", "torch.ones(4, 4)")}
        attempt("view", lambda: {view.replace("a.view(2, 2)", "a.view(2, 8)")})
        v = {view.replace("a.view(2, 2)", "a.view(2, 8)")}
        try:
            {change}
        except Exception as error:
            show("change", error)
        show("both", a, v, v._is_view(), v._base is not None)
        attempt("node", lambda: (v.grad_fn.name(), a.grad_fn.name()))
        attempt("backward", lambda: (a.sum() + v.sum()).backward())
        show("grad", leaf.grad)
    """


@episode
def views_under_no_grad(program: Program) -> str:
    return f"""
        w = torch.randn(4, requires_grad=True)
        with torch.no_grad():
            v = w[:2]
            {program.pick("v.zero_()", "w.mul_(2)", "v += 1", "w[1:].fill_(3)")}
        show("v", v, w)
        with torch.{program.pick("no_grad", "inference_mode")}():
            u = w.view(2, 2)
        attempt("u", lambda: u.mul_(2))
        attempt("sum", lambda: (u.sum() + w.sum()).backward())
        show("grad", w.grad)
        attempt("leaf in place", lambda: w.add_(1))
        attempt("view of leaf", lambda: w[0].zero_())
    """


@episode
def subclass(program: Program) -> str:
    return f"""
        class Tagged(torch.Tensor):
            {
        program.pick(
            "pass",
            '''
            @classmethod
            def __torch_function__(cls, function, types, args=(), kwargs=None):
                print("asked", getattr(function, "__name__", function))
                return super().__torch_function__(function, types, args, kwargs)
            ''',
        ).strip()
    }

        a = torch.randn(3, requires_grad=True)
        b = {program.pick("a * 2", "a", "a.detach().clone().requires_grad_()")}
        t = b.as_subclass(Tagged)
        {program.pick("pass", "b = b + 0; b.mul_(2)", "t = t * 1; t.mul_(2)")}
        show("type", type(t + 1).__name__, type(t.sum()).__name__, t)
        loss = (t * torch.arange(3.0)).sum()
        loss.backward()
        show("grad", a.grad, b.grad if b.is_leaf else None)
        attempt("stack", lambda: torch.stack([t, t]).mean())
        attempt("parameter", lambda: nn.Parameter(t.detach()).sum())
    """


@episode
def subclass_of_view(program: Program) -> str:
    return """
        a = torch.randn(4, requires_grad=True) * 2
        v = a[:2]
        a.mul_(2)

        class Other(torch.Tensor):
            pass

        w = v.as_subclass(Other)
        show("subclass", w)
        w.sum().backward()
    """


@episode
def wrapper_subclass(program: Program) -> str:
    return """
        from torch.utils import _pytree as pytree

        class Wrapped(torch.Tensor):
            @staticmethod
            def __new__(cls, inner):
                return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, requires_grad=inner.requires_grad)

            def __init__(self, inner):
                self.inner = inner

            def __repr__(self):
                return f"Wrapped({told(self.inner)})"

            @classmethod
            def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
                args, kwargs = pytree.tree_map_only(Wrapped, lambda w: w.inner, (args, kwargs or {}))
                return pytree.tree_map_only(torch.Tensor, Wrapped, function(*args, **kwargs))

        linear = nn.Linear(3, 3)
        linear.weight = nn.Parameter(Wrapped(linear.weight.detach()))
        opt = torch.optim.SGD(linear.parameters(), lr=0.1)
        loss = linear(torch.ones(2, 3)).square().mean()
        loss.backward()
        print(loss, linear.weight.grad)
        opt.step()
        print(linear.weight)
        attempt("double", lambda: repr(linear.double().weight))
    """


@episode
def nested(program: Program) -> str:
    layout = program.pick("torch.strided", "torch.jagged")
    return f"""
        warnings.simplefilter("ignore")
        rows = [torch.ones(2, 4), torch.ones(3, 4)]
        n = torch.nested.nested_tensor(rows, layout={layout}, requires_grad=True)
        linear = nn.Linear(4, 4)
        out = linear(n).tanh()
        show("size", [list(one.shape) for one in out.unbind()])
        loss = sum(one.sum() for one in out.unbind())
        loss.backward()
        show("grad", linear.weight.grad)
        {program.pick("pass", "show('padded', out.to_padded_tensor(0.0))")}
    """


@episode
def sparse(program: Program) -> str:
    return """
        w = torch.randn(3, 3, requires_grad=True)
        s = torch.sparse_coo_tensor([[0, 1], [1, 2]], [2.0, 3.0], (3, 3))
        out = torch.sparse.mm(s, w)
        out.sum().backward()
        show("sparse", out, w.grad, s)
        t = w.detach().to_sparse().requires_grad_()
        attempt("sum", lambda: torch.sparse.sum(t).backward())
        show("grad", t.grad)
        attempt("csr", lambda: (w.detach().to_sparse_csr() @ torch.ones(3)).sum())
    """


@episode
def complex_numbers(program: Program) -> str:
    return """
        z = torch.randn(3, dtype=torch.cfloat, requires_grad=True)
        out = (z.conj() * z).real.sum() + torch.view_as_real(z).square().sum() + z.abs().sum() + z.imag.sum()
        out.backward()
        show("complex", out, z.grad)
        attempt("complex loss", lambda: (z * z).sum().backward())
        opt = torch.optim.Adam([z], lr=0.1)
        opt.step()
        show("moved", z, torch.fft.ifft(z).conj().resolve_conj())
    """


@episode(weight=2)
def torch_func(program: Program) -> str:
    return program.pick(
        "show('vmap', torch.vmap(lambda r: (r * 2).sum())(torch.arange(6.0).view(2, 3)))",
        "show('grad', torch.func.grad(lambda w: (w**3).sum())(torch.ones(3)))",
        "show('both', torch.vmap(torch.func.grad(lambda w, r: (w * r).sum().sin()), (None, 0))(torch.ones(3), torch.arange(6.0).view(2, 3)))",
        "show('jac', torch.func.jacrev(lambda w: w**2)(torch.ones(3)), torch.func.jacfwd(torch.sin)(torch.ones(2)))",
        "show('hessian', torch.func.hessian(lambda w: (w**3).sum())(torch.ones(2)))",
        """
        net = nn.Linear(3, 2)
        values = {name: p.detach() for name, p in net.named_parameters()}
        def loss(values, x):
            return torch.func.functional_call(net, values, (x,)).square().mean()
        show("call", torch.func.grad(loss)(values, torch.ones(4, 3)))
        show("samples", torch.vmap(torch.func.grad(loss), (None, 0), randomness="different")(values, torch.ones(4, 3)))
        """,
        """
        nets = [nn.Linear(3, 1) for _ in range(3)]
        params, buffers = torch.func.stack_module_state(nets)
        base = copy.deepcopy(nets[0]).to("meta")
        out = torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (torch.ones(2, 3),)))(params, buffers)
        out.sum().backward()
        show("ensemble", out, [p.grad for p in params.values()])
        """,
        "out, back = torch.func.vjp(torch.sin, torch.ones(3)); show('vjp', out, back(torch.ones(3)))",
        "show('jvp', torch.func.jvp(torch.exp, (torch.zeros(2),), (torch.ones(2),)))",
        "show('linear', torch.func.linearize(torch.sin, torch.ones(2))[1](torch.ones(2)))",
        "show('function', torch.func.functionalize(lambda t: t.clone().mul_(2))(torch.ones(2)))",
        "attempt('not scalar', lambda: torch.func.grad(lambda w: w)(torch.ones(3))); attempt('random', lambda: torch.vmap(lambda r: r + torch.rand(()))(torch.ones(2)))",
        "show('autograd', torch.autograd.functional.jacobian(lambda t: t**2, torch.ones(2)), torch.autograd.functional.hvp(lambda t: (t**3).sum(), torch.ones(2), torch.ones(2)))",
        """
        import torch.autograd.forward_ad as fwAD
        with fwAD.dual_level():
            dual = fwAD.make_dual(torch.ones(2, requires_grad=True), torch.full((2,), 2.0))
            show("dual", fwAD.unpack_dual(dual.sin() * dual).tangent)
        """,
    )


@episode
def script(program: Program) -> str:
    return f"""
        warnings.simplefilter("ignore")
        @torch.jit.script
        def scripted(x: torch.Tensor, n: int) -> torch.Tensor:
            for _ in range(n):
                x = torch.tanh(x) * 2
            return x

        net = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        w = torch.ones(2, 3, requires_grad=True)
        for _ in range({program.pick(1, 3)}):
            loss = scripted(net(w), 2).sum()
            opt.zero_grad(); loss.backward(); opt.step()
            show("script", loss, w.grad)
    """


@episode
def script_in_place(program: Program) -> str:
    return f"""
        warnings.simplefilter("ignore")
        @torch.jit.script
        def bump(v: torch.Tensor):
            v.mul_(2)
            return v

        a = torch.randn(4, requires_grad=True) * 2
        v = {program.pick("a", "a[:2]", "a.view(2, 2)")}
        show("bumped", bump(v), a)
        v.sum().backward()
    """


@episode
def trace(program: Program) -> str:
    return f"""
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
        x = torch.ones(2, 3)
        {program.pick("pass", "net(x).sum().backward()")}
        traced = torch.jit.trace({program.pick("net, x", "lambda t: net(t) * t.shape[0], x", "net, x, check_trace=False")})
        show("traced", traced(x), len(str(traced.graph)) > 0)
        buffer = io.BytesIO(); torch.jit.save(traced, buffer); buffer.seek(0)
        again = torch.jit.load(buffer)
        again(x).sum().backward()
        show("loaded", again(x))
    """


@episode
def exported(program: Program) -> str:
    return """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(3, 3)

            def forward(self, x):
                return self.inner(x).relu() + (1 - x)

        graph = torch.fx.symbolic_trace(Net())
        print(graph.code.strip())
        show("fx", graph(torch.ones(2, 3)))
        graph(torch.ones(2, 3)).sum().backward()
    """


@episode
def compiled_function(program: Program) -> str:
    body = program.pick(
        "x * (1 - x) + 2**x",
        "(x.unflatten(0, (3, 1)) ** 2).sum() / (1 / x.abs().sum())",
        "torch.where(x > 0, x, -x).softmax(0) @ x",
        "x.clone().mul_(2).add_(1)",
        "F.layer_norm(x, (3,)) + x.detach()",
        "x if x.sum() > 0 else -x",
        "x * x.sum().item()",
    )
    backend = program.pick("eager", "eager", "aot_eager")
    return f"""
        @torch.compile(backend="{backend}"{program.pick("", ", fullgraph=True", ", dynamic=False")})
        def f(x):
            return {body}

        w = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
        attempt("compiled", lambda: f(w))
        attempt("backward", lambda: f(w).sum().backward())
        show("grad", w.grad)
        from torch._dynamo.utils import counters
        show("breaks", sorted(str(reason).splitlines()[0] for reason in counters["graph_break"]), counters["frames"]["ok"])
        with torch.no_grad():
            attempt("without", lambda: f(w))
    """


@episode
def recompiled(program: Program) -> str:
    return """
        torch._dynamo.config.recompile_limit = 3

        @torch.compile(backend="eager")
        def f(x, n):
            return (x * n).sum()

        w = torch.ones(3, requires_grad=True)
        for n in (1, 2, 3.0, 4, "a" and 5):
            f(w, n).backward()
        for size in range(2, 6):
            f(torch.ones(size), 1)
        show("grad", w.grad)
    """


@episode
def threads(program: Program) -> str:
    return f"""
        results = []
        def work(n):
            w = torch.full((3,), float(n), requires_grad=True)
            opt = torch.optim.SGD([w], lr=0.1)
            (w**2).sum().backward()
            opt.step()
            results.append((n, told(w), torch.is_grad_enabled()))
            {program.pick("pass", "raise ValueError('in a thread')" if program.chance(0.5) else "pass", "sys.exit(3)")}
        {
        program.pick(
            '''
        for n in range(3):
            thread = threading.Thread(target=work, args=(n,), name=f"worker {n}")
            thread.start(); thread.join()
        ''',
            '''
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(1) as pool:
            for future in [pool.submit(work, n) for n in range(3)]:
                try:
                    future.result()
                except BaseException as error:
                    show("future", error)
        ''',
            '''
        class Mine(threading.Thread):
            def run(self):
                work(1)
        thread = Mine(daemon=True); thread.start(); thread.join()
        ''',
        ).strip()
    }
        show("results", results)
    """


@episode
def exceptions(program: Program) -> str:
    return program.pick(
        "attempt('shape', lambda: torch.ones(2) @ torch.ones(3))",
        "attempt('no grad', lambda: torch.ones(2).sum().backward())",
        "attempt('not scalar', lambda: torch.ones(2, requires_grad=True).mul(2).backward())",
        "attempt('unused', lambda: torch.autograd.grad(torch.ones(1, requires_grad=True).sum(), torch.ones(1, requires_grad=True)))",
        "w = torch.ones(2, requires_grad=True); l = w.exp().sum(); l.backward(); attempt('freed', lambda: l.backward())",
        "attempt('numpy', lambda: torch.ones(2, requires_grad=True).numpy())",
        "attempt('copy', lambda: copy.deepcopy(torch.ones(2, requires_grad=True) * 2))",
        "attempt('leaf', lambda: torch.ones(2, requires_grad=True).mul_(2))",
        "attempt('int', lambda: torch.ones(2, dtype=torch.long).requires_grad_())",
        "attempt('optimizer', lambda: torch.optim.SGD([], lr=0.1)); attempt('no leaf', lambda: torch.optim.SGD([torch.ones(1, requires_grad=True) * 2], lr=0.1))",
        "attempt('dtype', lambda: F.cross_entropy(torch.ones(2, 2), torch.ones(2, dtype=torch.int32)))",
        """
        def boom(g):
            raise KeyError("in a hook")
        w = torch.ones(2, requires_grad=True); h = w * 2; h.register_hook(boom)
        attempt("hook", lambda: h.sum().backward())
        """,
        """
        try:
            try:
                torch.ones(2).backward()
            except RuntimeError as error:
                raise ValueError("wrapped") from error
        except ValueError as error:
            show("chain", error, error.__cause__, error.__context__)
        """,
    )


@episode
def printed_tracebacks(program: Program) -> str:
    """Tracebacks that the program itself prints."""
    call = program.pick(
        "nn.Linear(2, 2)(torch.ones(1, 5))",
        "torch.ones(2) @ torch.ones(3)",
        "F.relu('text')",
        "torch.ones(1).backward()",
        "nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3))(torch.ones(1, 2))",
        "torch.optim.SGD([torch.ones(1)], lr=-1)",
        "torch.autograd.grad(torch.ones(1), torch.ones(1))",
        "nn.Linear(2, 2).load_state_dict({})",
        "torch.func.grad(lambda w: w)(torch.ones(2))",
    )
    shown = program.pick(
        "traceback.print_exc()",
        "traceback.print_exception(error)",
        "print(len(traceback.extract_tb(error.__traceback__)), traceback.format_exc())",
        "print(traceback.format_exception_only(error), len(traceback.TracebackException.from_exception(error).stack))",
        "import logging; logging.exception('failed')",
        "sys.excepthook(*sys.exc_info())",
    )
    return f"""
        def inner():
            return {call}
        try:
            inner()
        except Exception as error:
            {shown}
    """


@episode
def warned(program: Program) -> str:
    """Warnings of torch's and of the program's."""
    return program.pick(
        "warnings.warn('of mine', stacklevel=2); warnings.warn('of mine', stacklevel=2)",
        "show('grad of a non-leaf', (torch.ones(2, requires_grad=True) * 2).grad)",
        "F.mse_loss(torch.ones(3), torch.ones(3, 1)); torch.ones(2).t_",
        "with warnings.catch_warnings(record=True) as caught:\n    warnings.simplefilter('always')\n    F.mse_loss(torch.ones(3, requires_grad=True), torch.ones(3, 1)).backward()\n    nn.Softmax()(torch.ones(2, 2))\nshow('caught', [(one.category.__name__, str(one.message), os.path.basename(one.filename), one.lineno) for one in caught])",
        "torch.tensor(torch.ones(2)); torch.tensor(torch.ones(2))",
        "nn.Softmax()(torch.ones(2, 2)); F.softmax(torch.ones(2, 2)); torch.ones(2, 3).T; torch.ones(3).T; torch.ones(2, 2, 2).T",
        "nn.LSTM(2, 2, dropout=0.5); nn.Transformer(8, 2, 1, 1, 8); torch.nn.init.xavier_uniform(torch.ones(2, 2))",
        "class Gone(UserWarning): pass\nwarnings.simplefilter('error', Gone)\nattempt('raised', lambda: warnings.warn('gone', Gone))",
        "b = torch.randn(3, requires_grad=True)\nh = torch.randn(3, requires_grad=True) * 2\n(b * 2).sum().backward()\nb.grad = None\nb.requires_grad_(False)\nb.copy_(h)",
        "p = nn.Parameter(torch.ones(2))\nx = p * 2\nx.backward(torch.ones(2), create_graph=True)",
        "torch.norm(torch.ones(2)); torch.meshgrid(torch.ones(2), torch.ones(2)); torch.symeig if hasattr(torch, 'symeig') else None; torch.range(0, 2)",
    )


@episode
def anomaly(program: Program) -> str:
    return f"""
        with torch.autograd.{program.pick("detect_anomaly()", "detect_anomaly(check_nan=False)", "set_detect_anomaly(True)")}:
            net = nn.Linear(2, 2)
            h = net(torch.ones(3, 2))
            loss = {program.pick("torch.sqrt(h - h).sum() * 0", "h.sum()", "(h / 0 * 0).sum()", "h.log().sum()", "F.relu(h).pow(0.5).sum()")}
            try:
                loss.backward()
            except RuntimeError as error:
                show("anomaly", error)
            show("grad", net.weight.grad)
    """


@episode
def recursion(program: Program) -> str:
    return f"""
        def deep(n):
            return 0 if n == 0 else 1 + deep(n - 1)
        attempt("deep enough", lambda: deep(sys.getrecursionlimit() - {program.pick(40, 40, 14)}))
        attempt("too deep", lambda: deep(10000))

        class Nested(nn.Module):
            def __init__(self, n):
                super().__init__()
                self.inner = Nested(n - 1) if n else nn.Linear(2, 2)

            def forward(self, x):
                return self.inner(x)

        net = Nested({program.pick(5, 60)})
        net(torch.ones(1, 2)).sum().backward()
        show("nested", [p.grad for p in net.parameters()])
        attempt("for ever", lambda: (lambda f: f(f, torch.ones(1)))(lambda f, t: f(f, torch.sin(t))))
    """


@episode
def modes_by_hand(program: Program) -> str:
    """The stacks of modes as the program sees them."""
    return program.pick(
        "show('modes', len(torch.overrides._get_current_function_mode_stack()))",
        """
        from torch.overrides import _pop_mode
        try:
            _pop_mode()
            print("popped")
        except Exception as error:
            show("pop", type(error).__name__)
        show("sum", (torch.ones(2, requires_grad=True) * 2).sum())
        """,
        """
        with torch._C.DisableTorchFunction():
            w = torch.ones(2, requires_grad=True)
            (w * 2).sum().backward()
        show("without", w.grad, torch.overrides.has_torch_function((w,)), torch.overrides.is_tensor_like(w))
        """,
        """
        class Mode(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                out = function(*args, **(kwargs or {}))
                return out * 2 if function is torch.sin else out
        mode = Mode()
        mode.__enter__()
        show("doubled", torch.sin(torch.ones(2, requires_grad=True)))
        mode.__exit__(None, None, None)
        """,
        """
        class Raising(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                if function is torch.cos:
                    raise ValueError("no cosine here")
                return function(*args, **(kwargs or {}))
        with Raising():
            attempt("cos", lambda: torch.cos(torch.ones(2)))
        """,
        "show('dispatch', torch.utils._python_dispatch._len_torch_dispatch_stack() if hasattr(torch.utils._python_dispatch, '_len_torch_dispatch_stack') else torch._C._len_torch_dispatch_stack())",
    )


@episode
def saved_tensors(program: Program) -> str:
    return f"""
        packed = []
        def pack(t):
            packed.append((list(t.shape), t.requires_grad, t.is_leaf))
            {program.pick("return t", "return t.clone()", "return (t.device, t.cpu())", "raise ValueError('pack') if len(packed) > 2 else None; return t")}
        def unpack(t):
            print("unpacked")
            return t[1] if isinstance(t, tuple) else t
        w = torch.randn(3, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            try:
                loss = (w.exp() * w.sin()).sum()
                loss.backward()
            except Exception as error:
                show("hooks", error)
        show("packed", packed, w.grad)
        out = w.exp()
        out.grad_fn._raw_saved_result.register_hooks(lambda t: t * 2, lambda t: t)
        attempt("raw", lambda: out.sum().backward())
    """


@episode
def graph_hooks(program: Program) -> str:
    return """
        w = torch.randn(3, requires_grad=True)
        a, b = w * 2, w.exp()
        handle = torch.autograd.graph.register_multi_grad_hook((a, b), lambda grads: show("multi", *[g for g in grads if g is not None]))
        any_handle = torch.autograd.graph.register_multi_grad_hook((a, b), lambda g: print("any"), mode="any")
        a.grad_fn.register_hook(lambda gi, go: show("node", gi, go))
        b.grad_fn.register_prehook(lambda g: (g[0] * 2,))
        torch.autograd.Variable._execution_engine.queue_callback if False else None
        (a.sum() + b.sum()).backward()
        edge = torch.autograd.graph.get_gradient_edge(w * 3)
        show("edge", torch.autograd.grad(edge, w, torch.ones(3)), edge.output_nr)
        show("nodes", w.grad, a.grad_fn.name(), sorted(a.grad_fn.metadata), a.grad_fn._sequence_nr() >= 0)
    """


@episode
def double_backward(program: Program) -> str:
    return f"""
        w = torch.randn(3, requires_grad=True)
        out = (w**3).sum() * w.sin().prod()
        (first,) = torch.autograd.grad(out, w, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), w, create_graph=True)
        third = torch.autograd.grad(second, w, torch.ones(3), retain_graph={program.pick("True", "False")})
        show("derivatives", first, second, third)
        attempt("again", lambda: torch.autograd.grad(second, w, torch.ones(3)))
        batched = torch.autograd.grad(w * 2, w, torch.eye(3), is_grads_batched=True)
        show("batched", batched, torch.autograd.grad(w.sum(), [w], materialize_grads=True))
    """


@episode
def maml(program: Program) -> str:
    """Steps whose own graph is differentiated."""
    return """
        net = nn.Linear(3, 1)
        meta = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(2):
            fast = dict(net.named_parameters())
            for _ in range(2):
                loss = torch.func.functional_call(net, fast, (torch.ones(4, 3),)).square().mean()
                grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
                fast = {name: p - 0.1 * g for (name, p), g in zip(fast.items(), grads)}
            outer = torch.func.functional_call(net, fast, (torch.ones(2, 3),)).mean()
            meta.zero_grad(); outer.backward(); meta.step()
            show("outer", outer)
    """


@episode
def generators(program: Program) -> str:
    return f"""
        def rows():
            with torch.{program.pick("no_grad()", "enable_grad()", "inference_mode()", "autograd.detect_anomaly(check_nan=False)")}:
                for n in range(3):
                    yield torch.full((2,), float(n), requires_grad=True) * 2
                    print("inside", torch.is_grad_enabled())
        for row in rows():
            show("row", row, torch.is_grad_enabled())

        @torch.no_grad()
        def decorated():
            got = yield torch.ones(2, requires_grad=True) * 2
            show("got", got)
        g = decorated(); show("first", next(g))
        attempt("last", lambda: g.send(torch.ones(1)))
    """


@episode
def grad_modes(program: Program) -> str:
    return program.pick(
        "torch.set_grad_enabled(False); show('off', torch.ones(2, requires_grad=True) * 2); torch.set_grad_enabled(True)",
        "with torch.inference_mode(): w = torch.ones(2, requires_grad=True); v = w * 2\nattempt('inference', lambda: (v * torch.ones(2, requires_grad=True)).sum().backward()); attempt('version', lambda: v._version)",
        "with torch.inference_mode(False): show('on', (torch.ones(2, requires_grad=True) * 2))",
        "@torch.no_grad()\ndef f(x): return x * 2\nshow('decorated', f(torch.ones(2, requires_grad=True)), f.__name__)",
        "with torch.set_grad_enabled(False):\n    with torch.enable_grad(): w = torch.ones(2, requires_grad=True) * 2\nshow('inner', w)",
        "guard = torch.no_grad(); guard.__enter__(); show('entered', torch.is_grad_enabled()); guard.__exit__(None, None, None)",
        "with torch.autograd.grad_mode.set_multithreading_enabled(False): torch.ones(2, requires_grad=True).sum().backward()",
        "@torch.inference_mode()\nclass Quiet:\n    def __call__(self, x): return x * 2\nattempt('class', lambda: Quiet()(torch.ones(2)))"
        if program.chance(0.3)
        else "torch.is_grad_enabled()",
        "with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()): show('guarded', torch.ones(2) + 1)",
    )


@episode
def parametrization(program: Program) -> str:
    return """
        class Symmetric(nn.Module):
            def forward(self, x):
                return x.triu() + x.triu(1).mT

            def right_inverse(self, x):
                return x.triu()

        net = nn.Linear(3, 3)
        torch.nn.utils.parametrize.register_parametrization(net, "weight", Symmetric())
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        with torch.nn.utils.parametrize.cached():
            loss = net(net(torch.ones(2, 3))).sum()
        loss.backward(); opt.step()
        show("parametrized", loss, [(name, p) for name, p in net.named_parameters()])
        net.weight = torch.ones(3, 3)
        torch.nn.utils.parametrize.remove_parametrizations(net, "weight")
        show("removed", net.weight, type(net).__name__)
    """


@episode
def deep_copies(program: Program) -> str:
    return """
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        net(torch.randn(4, 3)).sum().backward()
        twin = copy.deepcopy(net)
        show("twin", [p.grad for p in twin.parameters()], [p.is_leaf for p in twin.parameters()])
        buffer = io.BytesIO(); torch.save(net, buffer); buffer.seek(0)
        attempt("safe", lambda: type(torch.load(buffer)).__name__)
        buffer.seek(0)
        again = torch.load(buffer, weights_only=False)
        show("again", [b for b in again.buffers()], len(buffer.getvalue()))
        w = torch.ones(2, requires_grad=True); w.grad = torch.ones(2)
        show("copied", copy.copy(w), copy.deepcopy(w).grad, pickle.loads(pickle.dumps(w)), w.__reduce_ex__(4)[0].__name__)
        torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(net.parameters()) * 2, net.parameters())
        show("vector", [p for p in net.parameters()])
    """


@episode
def alive(program: Program) -> str:
    """When tensors, graphs, modules and optimizers die."""
    return """
        def made():
            net = nn.Linear(3, 3)
            opt = torch.optim.Adam(net.parameters())
            x = torch.ones(2, 3)
            h = net(x)
            loss = h.sum()
            loss.backward(); opt.step(); opt.zero_grad()
            for name, thing in [("x", x), ("h", h), ("loss", loss), ("weight", net.weight), ("net", net), ("opt", opt)]:
                weakref.finalize(thing, print, name, "died")
            return weakref.ref(h), weakref.ref(net.weight), weakref.ref(net)
        references = made()
        show("alive", [reference() is not None for reference in references])
        gc.collect()
        show("after collecting", [reference() is not None for reference in references])
        w = torch.ones(3, requires_grad=True)
        show("references", sys.getrefcount(w), sys.getrefcount(w * 2))
        storage = (w * 2).untyped_storage()
        show("storage", storage.size(), len(weakref.WeakSet([w])))
    """


@episode
def finalizers(program: Program) -> str:
    return """
        class Noisy(nn.Module):
            def __del__(self):
                print("module gone")

            def forward(self, x):
                return x * 2

        net = Noisy()
        out = net(torch.ones(2, requires_grad=True))
        out.sum().backward()
        del net
        print("after del")
        class Context(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                class Held:
                    def __del__(self):
                        print("context gone")
                ctx.held = Held()
                return x * 2

            @staticmethod
            def backward(ctx, g):
                return g * 2

        out = Context.apply(torch.ones(2, requires_grad=True))
        out.sum().backward()
        print("before")
        del out
        print("after")
    """


@episode
def gradients_by_hand(program: Program) -> str:
    return """
        w = torch.ones(3, requires_grad=True)
        w.grad = torch.zeros(3)
        kept = w.grad
        (w * 2).sum().backward()
        show("same", kept is w.grad, kept)
        w.grad.data.zero_(); w.grad.requires_grad_(False)
        attempt("shape", lambda: setattr(w, "grad", torch.ones(2)))
        attempt("dtype", lambda: setattr(w, "grad", torch.ones(3, dtype=torch.double)))
        w.grad = None
        del w.grad
        w.data = torch.zeros(4)
        show("data", w, w.requires_grad)
        w.requires_grad = False
        w.requires_grad_()
        (w.sum() * 2).backward()
        show("grad", w.grad, w.grad.is_contiguous(), w.grad.stride())
    """


@episode
def swapped(program: Program) -> str:
    return """
        a, b = torch.ones(2, requires_grad=True), torch.zeros(3, requires_grad=True)
        a.sum().backward()
        attempt("swap", lambda: torch.utils.swap_tensors(a, b))
        show("swapped", a, b, a.grad, b.grad)
        torch.__future__.set_swap_module_params_on_conversion(True)
        net = nn.Linear(2, 2)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        net(torch.ones(1, 2)).sum().backward(); opt.step()
        attempt("double", lambda: net.double().weight)
        attempt("float", lambda: net.float().weight)
        attempt("load", lambda: str(net.load_state_dict({name: p * 2 for name, p in net.state_dict().items()})))
        torch.__future__.set_swap_module_params_on_conversion(False)
        show("weights", net.weight)
    """


@episode
def checkpoints(program: Program) -> str:
    return f"""
        from torch.utils.checkpoint import checkpoint
        net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Tanh())
        x = torch.randn(4, 3{program.pick("", ", requires_grad=True")})
        attempt("reentrant", lambda: checkpoint(net, x, use_reentrant=True).sum().backward())
        show("grads", [p.grad for p in net.parameters()])
        out = checkpoint(net, x, use_reentrant=False)
        out.sum().backward()
        show("grads", [p.grad for p in net.parameters()], x.grad)
        calls = []
        def changing(t):
            calls.append(1)
            return t.sin().cos() if len(calls) == 1 else t.sin()
        try:
            checkpoint(changing, x * net[0].weight.sum(), use_reentrant=False{program.pick("", ", debug=False")}).sum().backward()
        except Exception as error:
            show("changed", type(error).__name__, str(error)[:60])
        attempt("early", lambda: torch.autograd.grad(checkpoint(net, x, use_reentrant=True).sum(), net[0].weight))
    """


@episode
def distributions(program: Program) -> str:
    return """
        from torch import distributions as D
        mean = torch.zeros(2, requires_grad=True)
        one = D.Normal(mean, torch.ones(2))
        sample = one.rsample((3,))
        loss = -one.log_prob(sample).mean() + D.kl_divergence(one, D.Normal(0.0, 2.0)).sum()
        loss.backward()
        show("normal", sample, loss, mean.grad)
        show("others", D.Categorical(logits=mean).sample((4,)), D.Bernoulli(0.3).sample(), D.MultivariateNormal(mean.detach(), torch.eye(2)).sample())
        show("entropy", D.Categorical(logits=mean).entropy(), D.Gamma(1.0, 1.0).rsample())
    """


@episode
def set_data(program: Program) -> str:
    return """
        w = nn.Parameter(torch.ones(3))
        out = w.exp()
        w.data.mul_(2)
        out.sum().backward()
        show("data", w.grad, w._version)
        out = w.exp() * w
        with torch.no_grad():
            w.mul_(0.5)
        attempt("changed", lambda: out.sum().backward())
        out = torch.ones(3, requires_grad=True).sigmoid()
        out.add_(1)
        attempt("saved", lambda: out.sum().backward())
        with torch.autograd._unsafe_preserve_version_counter(w):
            w.data.add_(1)
        show("version", w._version)
    """


@episode
def forked(program: Program) -> str:
    """A process that the program forks."""
    leave = program.pick("pass", "sys.exit(4)", "os._exit(5)", "raise ValueError('in the child')")
    return f"""
        warnings.simplefilter("ignore")
        import atexit
        {program.pick("pass", "atexit.register(lambda: print('bye', flush=True))")}
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            random.seed(0)
            show("child", (torch.ones(2, requires_grad=True) * 2).sum())
            sys.stdout.flush()
            {leave}
            sys.exit(0)
        show("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """


@episode
def stacks(program: Program) -> str:
    """Classes, properties and closures between the program and torch."""
    return """
        class Lazy:
            @property
            def weight(self):
                return torch.ones(2, requires_grad=True) * 2

            def __torch_function__(self, *args):
                return "asked"

            def __add__(self, other):
                return other

        show("lazy", Lazy().weight)
        attempt("like a tensor", lambda: torch.add(Lazy(), 1))
        out = functools.reduce(torch.add, [torch.ones(2, requires_grad=True) for _ in range(3)])
        out.sum().backward()
        show("reduced", out, *map(torch.sin, [torch.ones(1)]), sum(torch.ones(2)), max(torch.ones(2)), sorted([torch.tensor(2), torch.tensor(1)]))
        show("items", [float(one) for one in torch.ones(2)], torch.ones(2).tolist(), int(torch.tensor(3)), bool(torch.tensor(1)), torch.ones(2).numpy().sum())
        match torch.ones(2).shape:
            case [n]:
                show("matched", n)
        if (t := torch.ones(2)).sum() > 1: show("walrus", t)
        show("format", f"{torch.tensor(1.5):.3f} {torch.ones(2)} {torch.ones(1, requires_grad=True)!r}")
    """


@episode
def custom_ops(program: Program) -> str:
    number = program.number()
    return f"""
        @torch.library.custom_op("fuzz::doubled{number}", mutates_args=())
        def doubled(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        doubled.register_fake(lambda x: torch.empty_like(x))
        doubled.register_autograd(lambda ctx, g: g * 2)
        w = torch.ones(3, requires_grad=True)
        out = doubled(w)
        out.sum().backward()
        show("custom op", out, w.grad)
        attempt("through ops", lambda: torch.ops.fuzz.doubled{number}(w))
    """


@episode
def many_outputs(program: Program) -> str:
    return """
        w = torch.randn(4, 4, requires_grad=True)
        values, indices = w.max(1)
        q, r = torch.linalg.qr(w)
        u, s, v = torch.linalg.svd(w)
        top = w.topk(2)
        loss = values.sum() + r.diagonal().sum() + s.sum() + top.values.sum() + sum(part.sum() for part in w.split(2)) + torch.var_mean(w)[0]
        loss.backward()
        show("many", loss, w.grad, type(top).__name__, indices)
        a, b = w.unbind()[:2]
        a = a.clone(); a.mul_(b.detach())
        attempt("unbound in place", lambda: w.exp().unbind()[0].mul_(2).sum().backward())
        out = torch.empty(4)
        attempt("out", lambda: torch.sin(w[0], out=out))
        show("out", torch.sin(w.detach()[0], out=out) is out, out)
    """


# Ways in which an episode's function is called.


@way(weight=6)
def plainly(program: Program) -> str:
    return "{name}()"


@way(weight=3)
def guarded(program: Program) -> str:
    return "attempt('{name}', {name})"


@way
def in_thread(program: Program) -> str:
    return "thread = threading.Thread(target={name}); thread.start(); thread.join()"


@way
def in_generator(program: Program) -> str:
    return "list({name}() for _ in range(2))"


@way
def under_a_with(program: Program) -> str:
    return program.pick(
        "with torch.no_grad(): attempt('{name}', {name})",
        "with warnings.catch_warnings(record=True) as caught:\n    attempt('{name}', {name})\nshow('warned', [str(one.message) for one in caught])",
        "with contextlib.ExitStack() as stack:\n    stack.enter_context(torch.enable_grad())\n    {name}()",
        "with torch.inference_mode(): attempt('{name}', {name})",
        "with contextlib.redirect_stdout(io.StringIO()) as heard: {name}()\nprint(len(heard.getvalue()), heard.getvalue()[-200:])",
        "with torch.device('meta'): attempt('{name}', {name})",
    )


@way
def twice(program: Program) -> str:
    return "for _ in range(2): {name}()"


@way
def with_traceback(program: Program) -> str:
    return "try:\n    {name}()\nexcept Exception:\n    traceback.print_exc()"


# Endings.


@ending(weight=12)
def quiet(program: Program) -> str:
    return "pass"


@ending(weight=2)
def exits(program: Program) -> str:
    return program.pick(
        "sys.exit()",
        "sys.exit(0)",
        "sys.exit(3)",
        "sys.exit('the end, as a text')",
        "raise SystemExit(7)",
        "sys.exit(256 + 4)",
        "sys.exit(-1)",
        "exit(2)",
        "sys.exit(True)",
        "sys.exit([1, 2])",
        "raise SystemExit",
        "sys.exit(2.5)",
        "print('\\udc80')",
        "sys.exit(2**40)",
    )


@ending
def leaves_at_once(program: Program) -> str:
    return program.pick(
        "sys.stdout.flush(); os._exit(6)",
        "sys.stdout.flush(); os.kill(os.getpid(), 9)",
        "os._exit(0)",
        "sys.stdout.flush(); os.abort()",
    )


@ending(weight=2)
def raises(program: Program) -> str:
    return program.pick(
        "raise ValueError('the end\\nin two lines')",
        "torch.ones(2) @ torch.ones(3)",
        "model(torch.ones(2, 5))",
        "torch.ones(2).sum().backward()",
        "w = torch.ones(2, requires_grad=True); l = w.exp().sum(); l.backward(); l.backward()",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise RuntimeError('on top') from error",
        "try:\n    torch.ones(2) @ torch.ones(3)\nfinally:\n    raise KeyError('in finally')",
        "raise ExceptionGroup('both', [ValueError('one'), RuntimeError('two')])",
        "class Own(BaseException): pass\nraise Own('of mine')",
        "def deep(n): return deep(n + 1)\ndeep(0)",
        "class Bad(Exception):\n    def __str__(self): raise ValueError('no text')\nraise Bad",
        "assert model is None, 'not so'",
        "nn.Linear(2, 2)(torch.ones(1, 3))",
        "h = torch.ones(2, requires_grad=True).exp(); h.mul_(2); h.sum().backward()",
        "error = ValueError('noted'); error.add_note('a note'); raise error",
        "torch.utils.checkpoint.checkpoint(nn.Linear(2, 2), torch.ones(1, 3, requires_grad=True), use_reentrant=False)",
        "torch.compile(lambda x: x @ torch.ones(5), backend='eager')(torch.ones(3))",
    )


@ending
def thread_left(program: Program) -> str:
    """A thread that is still at work when the script has ended."""
    return """
        go = threading.Event()
        def late():
            go.wait()
            (torch.ones(2, requires_grad=True) * 2).sum().backward()
            print("late thread done")
        threading.Thread(target=late).start()
        threading.Timer(0, go.set).start()
    """


@ending
def streams(program: Program) -> str:
    return program.pick(
        "print('to stderr', file=sys.stderr)",
        "sys.stdout.write('no newline')",
        "sys.stdout = io.StringIO(); print('lost')",
        "print('é ✓ \\x1b[31m')",
        "sys.stderr.write('no newline')",
        "sys.stdout.buffer.write(b'bytes\\n')",
        "os.write(1, b'straight\\n')",
        "os.chdir('/')",
        "sys.argv[:] = []; sys.path[:] = sys.path",
        "os.environ['CHANGED'] = '1'",
        "del sys.modules['__main__']"
        if program.chance(0.2)
        else "print(__name__, os.path.basename(__file__), sys.argv[1:], os.path.basename(sys.path[0]))",
    )
