"""What programs do in and around their training loop: each puts its code into the places of the loop."""

from __future__ import annotations

from tests.fuzz.program import Ingredients, Program

setting = Ingredients("setting")
habit = Ingredients("habit")


# Settings: before anything is made.


@setting
def default_dtype(program: Program) -> None:
    program.settings.append("torch.set_default_dtype(torch.float64)")


@setting
def default_device(program: Program) -> None:
    program.settings.append("torch.set_default_device('cpu')")


@setting
def swap_on_conversion(program: Program) -> None:
    program.settings.append("torch.__future__.set_swap_module_params_on_conversion(True)")
    program.setup.append("model.double(); model.to(torch.get_default_dtype())")


@setting
def overwrite_on_conversion(program: Program) -> None:
    program.settings.append("torch.__future__.set_overwrite_module_params_on_conversion(True)")
    program.setup.append("model.double(); model.to(torch.get_default_dtype())")


@setting
def deterministic(program: Program) -> None:
    program.settings.append("torch.use_deterministic_algorithms(True)")


@setting
def anomaly_mode(program: Program) -> None:
    program.settings.append("torch.autograd.set_detect_anomaly(True)")


@setting
def warnings_as_errors(program: Program) -> None:
    program.settings.append(f"warnings.simplefilter('{program.pick('error', 'always', 'ignore', 'once', 'default')}')")


@setting
def own_showwarning(program: Program) -> None:
    program.settings.append(
        """
        def shown(message, category, filename, lineno, file=None, line=None):
            print("WARNED", category.__name__, message, os.path.basename(filename), lineno)
        warnings.showwarning = shown
        """
    )


@setting
def own_excepthook(program: Program) -> None:
    program.settings.append(
        """
        def hooked(kind, error, trace):
            print("HOOKED", kind.__name__, error, len(traceback.extract_tb(trace)), flush=True)
        sys.excepthook = hooked
        """
    )


@setting
def at_exit(program: Program) -> None:
    program.settings.append("import atexit\natexit.register(lambda: print('at exit', torch.is_grad_enabled()))")


@setting
def numpy_too(program: Program) -> None:
    program.settings.append("import numpy\nnumpy.random.seed(3)")
    program.batch.append("x = x + torch.from_numpy(numpy.random.rand(5, 6)).to(x.dtype)")


# Habits: in the loop.


@habit
def tensor_hook(program: Program) -> None:
    action = program.pick(
        "None", "g * 0.5", "g.clone()", "print('grad', list(g.shape))", "g.mul_(0.5)", "torch.zeros_like(g)"
    )
    program.hidden.append(f"h.register_hook(lambda g: {action})")


@habit
def retain_grad(program: Program) -> None:
    program.hidden.append("h.retain_grad()")
    program.after_backward.append("show('hidden', h.grad)")


@habit
def module_hooks(program: Program) -> None:
    program.setup.append(
        program.pick(
            "handle = model.register_forward_hook(lambda m, args, out: show('out', out))",
            "handle = model.register_forward_pre_hook(lambda m, args: (args[0] * 1.5,))",
            "handle = model.register_full_backward_hook(lambda m, gi, go: show('full', gi, go))",
            "handle = model.register_full_backward_pre_hook(lambda m, go: (go[0] * 2,))",
            "handle = model.register_forward_hook(lambda m, args, kwargs, out: out * 2, with_kwargs=True, always_call=True)",
            "handle = torch.nn.modules.module.register_module_forward_hook(lambda m, args, out: print('any', type(m).__name__))",
            "handle = torch.nn.modules.module.register_module_full_backward_hook(lambda m, gi, go: print('back', type(m).__name__))",
            "handle = model.register_state_dict_pre_hook(lambda m, prefix, keep: print('state of', type(m).__name__))",
        )
    )
    if program.chance(0.5):
        program.after_update.append("handle.remove()")


@habit
def accumulate_hooks(program: Program) -> None:
    program.setup.append(
        program.pick(
            "for p in model.parameters(): p.register_post_accumulate_grad_hook(lambda p: show('arrived', p.grad))",
            "for p in model.parameters(): p.register_hook(lambda g: g.clamp(-0.1, 0.1))",
            """
            nodes = [p.view_as(p).grad_fn.next_functions[0][0] for p in model.parameters()]
            handles = [node.register_hook(lambda *args: print("accumulated")) for node in nodes]
            """,
            """
            handles = [p.expand_as(p).grad_fn.next_functions[0][0].register_prehook(lambda g: None) for p in model.parameters()]
            """,
        )
    )


@habit
def clip(program: Program) -> None:
    program.after_backward.append(
        program.pick(
            "show('norm', torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))",
            "torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)",
            "torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5, norm_type=float('inf'), foreach=True)",
        )
    )


@habit
def accumulate(program: Program) -> None:
    program.clear = "if step % 2 == 0: opt.zero_grad() if opt is not None else model.zero_grad()"
    program.backward = "(loss / 2).backward()"


@habit
def never_cleared(program: Program) -> None:
    program.clear = "pass"


@habit
def clear_otherwise(program: Program) -> None:
    program.clear = program.pick(
        "model.zero_grad(set_to_none=False)",
        "model.zero_grad()",
        "for p in model.parameters(): p.grad = None",
        "for p in model.parameters(): p.grad = torch.zeros_like(p)",
        "[p.grad.zero_() for p in model.parameters() if p.grad is not None]",
    )


@habit(weight=2)
def other_backward(program: Program) -> None:
    program.backward = program.pick(
        "loss.backward(retain_graph=True); loss.backward()",
        "loss.backward(inputs=list(model.parameters()))",
        "loss.backward(create_graph=True)",
        "torch.autograd.backward([loss, h.sum()])",
        "torch.autograd.backward(loss, torch.tensor(0.5))",
        "loss.backward(gradient=torch.ones_like(loss))",
        """
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for p, g in zip(model.parameters(), found): p.grad = g
        """,
        """
        found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], create_graph=True, allow_unused=True)
        penalty = sum(g.square().sum() for g in found if g is not None)
        (loss + 0.1 * penalty).backward() if isinstance(penalty, torch.Tensor) and penalty.requires_grad else loss.backward()
        """,
        """
        loss.backward()
        attempt("again", lambda: loss.backward())
        """,
        """
        with torch.autograd.graph.save_on_cpu():
            again = model(x).mean()
        again.backward()
        """,
        "attempt('wrong shape', lambda: h.backward()); loss.backward()",
    )


@habit
def in_place_hidden(program: Program) -> None:
    program.hidden.append(
        program.pick(
            "h = h.clone(); h[:, 0] = 1.0",
            "h = h * 1; h.mul_(2)",
            "h = h + 0; h[0].zero_()",
            "h = h.clone(); h[h > 1] = 1.0",
            "h = h.clone(); h[:, :2] += h[:, 2:4]",
            "h = h.clone(); torch.relu_(h[1:])",
            "h = h.clone(); h.index_add_(1, torch.tensor([0]), y[:, :1])",
            "h = h.clone(); v = h.view(-1); v.add_(1); show('base', h)",
            "h = h.clone(); a, b = h.chunk(2, 1); h = torch.cat([b, a], 1)",
            "h = h.clone(); h.t_().t_()",
            "h = h.clone(); h.resize_(h.shape)",
            "h = h * 1; h.copy_(y)",
            "h = h * 1; h.data.add_(1)",
            "h = h.clone(); h.unsqueeze_(0).squeeze_(0)",
            "h = h.clone(); h.transpose_(0, 1).transpose_(0, 1)",
            "h = h * 1; h.detach().zero_()",
            "h = h * 1; h.set_(h.detach() * 2)",
            "h = h.clone(); h.fill_diagonal_(0)",
            "h = h.clone(); h.masked_scatter_(h > 0, y)",
        )
    )


@habit
def in_place_error(program: Program) -> None:
    """What backward refuses, caught."""
    program.hidden.append("squared = h.exp(); squared.add_(1)")
    program.loss.append("attempt('refused', lambda: squared.sum().backward(retain_graph=True))")


@habit
def cut(program: Program) -> None:
    program.hidden.append(
        program.pick(
            "h = h.detach().requires_grad_()",
            "h = torch.tensor(h.tolist(), requires_grad=True)",
            "h = h.data + 0 * h",
            "h = h.detach() + h.mean()",
            "with torch.no_grad(): h0 = model(x)\nh = h - h0",
            "h = torch.from_numpy(h.detach().numpy()) + h",
            "h = torch.as_tensor(h) * 1",
            "h = h + float(h.mean())",
            "h = h.round() + h - h.detach()",
            "h = nn.Parameter(h)",
            "h = h + torch.zeros_like(h).uniform_()",
            "h = (h > 0).float() + h",
            "h = h.argmax(1, keepdim=True) + h",
        )
    )


@habit
def checkpointed(program: Program) -> None:
    reentrant = program.pick(
        "True", "False", "False", "False, preserve_rng_state=False", "False, determinism_check='none'"
    )
    program.hidden.append(
        program.pick(
            f"h = torch.utils.checkpoint.checkpoint(lambda t: torch.sigmoid(t) * t, h, use_reentrant={reentrant})",
            f"h = torch.utils.checkpoint.checkpoint(model, h, use_reentrant={reentrant})",
            "h = torch.utils.checkpoint.checkpoint_sequential(nn.Sequential(model, nn.Tanh(), nn.Dropout(0.1)), 2, h, use_reentrant=False)",
        )
    )


@habit
def frozen(program: Program) -> None:
    program.setup.append("for p in list(model.parameters())[:1]: p.requires_grad_(False)")
    if program.chance(0.5):
        program.after_update.append("for p in model.parameters(): p.requires_grad_(True)")


@habit
def evaluated(program: Program) -> None:
    program.after_update.append(
        program.pick(
            "model.eval()\nwith torch.no_grad(): show('eval', model(x))\nmodel.train()",
            "with torch.inference_mode(): show('eval', model(x))",
            "with torch.inference_mode(): z = model(x)\nattempt('inference tensor', lambda: (z * h).sum().backward())",
            "model.train(False); show('eval', F.mse_loss(model(x), y).item()); model.train(True)",
        )
    )


@habit
def saved_and_loaded(program: Program) -> None:
    program.after_update.append(
        program.pick(
            """
            buffer = io.BytesIO(); torch.save(model.state_dict(), buffer); buffer.seek(0)
            attempt("loaded", lambda: str(model.load_state_dict(torch.load(buffer))))
            """,
            "attempt('assigned', lambda: str(model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)))",
            "if opt is not None: state = copy.deepcopy(opt.state_dict()); opt.load_state_dict(state)",
            "attempt('pickled', lambda: pickle.loads(pickle.dumps(model))(x))",
            "attempt('copied', lambda: copy.deepcopy(model)(x))",
            "attempt('loss copied', lambda: copy.deepcopy(loss))",
            "if opt is not None: attempt('optimizer pickled', lambda: type(pickle.loads(pickle.dumps(opt))).__name__)",
            "attempt('wrong keys', lambda: model.load_state_dict({'nothing': x}))",
        )
    )


@habit
def converted(program: Program) -> None:
    program.after_update.append(
        program.pick(
            "model.double(); model.to(x.dtype)",
            "attempt('half', lambda: copy.deepcopy(model).half())",
            "attempt('bfloat16', lambda: copy.deepcopy(model).bfloat16()(x.bfloat16()).sum())",
            "model.to('cpu', non_blocking=True).requires_grad_(True)",
            "attempt('meta', lambda: copy.deepcopy(model).to('meta')(x.to('meta')).shape)",
            "model.apply(lambda m: None); model._apply(lambda t: t * 1)",
        )
    )


@habit
def autocast(program: Program) -> None:
    program.loss.append(
        """
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss + (h @ h.mT).float().mean().to(loss.dtype) * 1e-3
        """
    )
    if program.chance(0.3):
        program.setup.append("scaler = torch.amp.GradScaler('cpu', init_scale=8.0)")
        program.backward = "scaler.scale(loss).backward()"


@habit
def losses(program: Program) -> None:
    program.loss.append(
        "loss = "
        + program.pick(
            "F.l1_loss(h, y)",
            "F.smooth_l1_loss(h, y)",
            "F.huber_loss(h, y)",
            "F.cross_entropy(h, y.argmax(1))",
            "F.nll_loss(h, y.argmax(1))",
            "F.binary_cross_entropy_with_logits(h, y)",
            "F.kl_div(h.log_softmax(1), y.softmax(1), reduction='batchmean')",
            "nn.MSELoss()(h, y)",
            "F.cosine_embedding_loss(h, y, torch.ones(5))",
            "F.triplet_margin_loss(h, y, y.flip(0))",
            "(h - y).pow(2).sum(1).mean()",
            "F.mse_loss(h, y, reduction='none').mean(0).max()",
            "F.mse_loss(h, y[:, :1])",
            "F.gaussian_nll_loss(h, y, torch.ones_like(y))",
            "torch.distributions.Normal(h, 1.0).log_prob(y).neg().mean()",
            "F.multi_margin_loss(h, y.argmax(1))",
            "h.var() + h.std(0).sum()",
            "torch.nn.functional.poisson_nll_loss(h, y)",
            "F.cross_entropy(h, y.softmax(1), label_smoothing=0.1)",
            "torch.linalg.norm(h - y)",
            "F.ctc_loss(h.log_softmax(1)[:, None], torch.tensor([[1, 2]]), torch.tensor([5]), torch.tensor([2]))",
            "torch.dist(h, y)",
        )
    )


@habit
def not_finite(program: Program) -> None:
    program.loss.append(
        program.pick(
            "loss = loss + (h - h).sqrt().sum()",
            "loss = loss / 0",
            "loss = loss + torch.log(h * 0).sum()",
            "loss = loss * float('nan')",
            "loss = loss + (h * 1e20 * 1e20).sum() * 0",
        )
    )


@habit
def loss_history(program: Program) -> None:
    """The graph of each step kept, and what was printed on the way."""
    program.setup.append("history, total = [], 0.0")
    program.loss.append(
        program.pick(
            "history.append(loss)",
            "total = total + loss.detach()",
            "total += loss.item()",
            "history.append(loss.detach().clone())",
        )
    )
    program.ending.append("show('history', history, total)")


@habit
def printed(program: Program) -> None:
    program.loss.append(
        program.pick(
            "print(loss)",
            "print(h)",
            "print(repr(x.grad), h.grad_fn is not None)",
            "print(f'{loss:.4f} {loss.item()!r} {float(loss)}')",
            "print(model)",
            "print(loss.grad_fn.name(), len(loss.grad_fn.next_functions))",
        )
    )


@habit
def graph_walked(program: Program) -> None:
    program.define(
        """
        def walked(node, depth=0):
            if node is None or depth > 6:
                return
            print(" " * depth + node.name(), [name for name in dir(node) if name.startswith("_saved")])
            for following, _ in node.next_functions:
                walked(following, depth + 1)
        """
    )
    program.loss.append("walked(loss.grad_fn)")


@habit
def data_loader(program: Program) -> None:
    program.setup.append(
        """
        from torch.utils.data import DataLoader, TensorDataset
        loader = DataLoader(TensorDataset(torch.randn(10, 6), torch.randn(10, 6)), batch_size=5, shuffle=True)
        """
    )
    program.batch.append("for x, y in loader: pass")


@habit
def noise(program: Program) -> None:
    program.batch.append(
        program.pick(
            "x = x + torch.randn_like(x)",
            "x = x * torch.bernoulli(torch.full_like(x, 0.8))",
            "x = x[torch.randperm(len(x))]",
            "x = x + random.random()",
            "with torch.random.fork_rng(): x = x + torch.rand(())",
            "x = x.requires_grad_()",
            "x = x + torch.normal(0.0, 1.0, x.shape)",
            "generator = torch.Generator().manual_seed(step); x = x + torch.rand(6, generator=generator)",
            "state = torch.get_rng_state(); x = x + torch.rand(6); torch.set_rng_state(state)",
        )
    )


@habit
def learning_only_the_input(program: Program) -> None:
    program.batch.append("x.requires_grad_()")
    program.after_backward.append("show('input', x.grad)")


@habit
def graph_growing(program: Program) -> None:
    """A state that is carried from step to step, with its graph or without."""
    program.setup.append("state = torch.zeros(6)")
    program.hidden.append("h = h + state")
    program.after_update.append(program.pick("state = h.mean(0).detach()", "state = h.mean(0)"))
    program.backward = program.pick("loss.backward(retain_graph=True)", "attempt('backward', lambda: loss.backward())")


@habit
def stopped_early(program: Program) -> None:
    program.after_update.append(
        program.pick("if step == 1: break", "if step == 1: continue", "if not math.isfinite(loss.item()): break")
    )


@habit
def grown_model(program: Program) -> None:
    """A model whose parts change while it is trained."""
    program.after_update.append(
        program.pick(
            "model.extra = nn.Linear(6, 6)\nif opt is not None: opt.add_param_group({'params': list(model.extra.parameters())})",
            "model[0] = nn.Linear(6, 6)",
            "model.append(nn.Tanh())",
            "model.register_parameter('bias_of_all', nn.Parameter(torch.zeros(6)))",
            "for m in model.modules(): m.added = 3",
        )
    )


@habit
def with_lines(program: Program) -> None:
    """Something entered around the whole loop."""
    program.around.append(
        program.pick(
            "with torch.autograd.detect_anomaly():",
            "with torch.autograd.set_detect_anomaly(True, check_nan=False):",
            "with torch.enable_grad():",
            "with warnings.catch_warnings(record=True) as caught:",
            "with contextlib.suppress(RuntimeError):",
            "with torch.autograd.profiler.record_function('loop'):",
            "with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 1, lambda t: t):",
            "with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True).copy(), torch.from_numpy):",
            "with torch.autograd.graph.allow_mutation_on_saved_tensors():",
            "with torch.device('cpu'):",
            "with torch.random.fork_rng():",
            "with torch.autograd.set_multithreading_enabled(False):",
            "with torch.no_grad():\n    torch.set_grad_enabled(True)\nif True:",
            "with torch.autograd.graph.disable_saved_tensors_hooks('not now'):",
            "with contextlib.redirect_stderr(sys.stdout):",
            "with torch.nn.utils.parametrize.cached():",
            "with torch.backends.mkldnn.flags(enabled=False):",
        )
    )


@habit
def profiled(program: Program) -> None:
    """The events are counted by name, but for recorded stacks: torch then reads names that are gone, now and then."""
    options = program.pick(
        "", "", ", with_stack=True, record_shapes=True", ", profile_memory=True, with_flops=True", ", with_modules=True"
    )
    program.around.append(
        f"with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]{options}) as prof:"
    )
    if "with_stack" not in options:
        program.ending.append(
            """
            counted = [(event.key, event.count) for event in prof.key_averages() if event.key in ("aten::addmm", "aten::tanh")]
            show("profile", sorted(counted))
            """
        )


@habit
def function_mode(program: Program) -> None:
    """A mode of the user's own, that looks or changes."""
    program.define(
        """
        class Counting(torch.overrides.TorchFunctionMode):
            def __init__(self):
                super().__init__()
                self.calls = []

            def __torch_function__(self, function, types, args=(), kwargs=None):
                self.calls.append(getattr(function, "__name__", "?"))
                return function(*args, **(kwargs or {}))
        """
    )
    program.around.append("with Counting() as counting:")
    program.ending.append(
        "show('calls', len(counting.calls), hashlib.sha1(repr(counting.calls).encode()).hexdigest(), sorted(set(counting.calls)))"
    )


@habit
def dispatch_mode(program: Program) -> None:
    program.define(
        """
        from torch.utils._python_dispatch import TorchDispatchMode

        class Dispatched(TorchDispatchMode):
            def __init__(self):
                super().__init__()
                self.calls = []

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                self.calls.append(str(function))
                return function(*args, **(kwargs or {}))
        """
    )
    program.around.append("with Dispatched() as dispatched:")
    program.ending.append("show('dispatched', len(dispatched.calls), sorted(set(dispatched.calls)))")


@habit(weight=2)
def patched_function(program: Program) -> None:
    """A function or method of torch's replaced by a wrapper, and put back or not."""
    owner, name = program.pick(
        ("F", "mse_loss"),
        ("F", "linear"),
        ("F", "relu"),
        ("torch", "tanh"),
        ("torch.Tensor", "backward"),
        ("torch.Tensor", "mean"),
        ("F", "layer_norm"),
        ("torch.Tensor", "detach"),
        ("torch.autograd", "backward"),
        ("torch.autograd", "grad"),
        ("nn.Linear", "forward"),
        ("nn.Module", "__call__"),
        ("torch.optim.Optimizer", "zero_grad"),
        ("torch.Tensor", "__mul__"),
        ("F", "softmax"),
        ("torch", "cat"),
        ("torch.Tensor", "item"),
        ("F", "batch_norm"),
        ("torch.Tensor", "register_hook"),
        ("nn.Module", "train"),
        ("nn.Module", "zero_grad"),
        ("torch.Tensor", "__getitem__"),
        ("torch.utils.checkpoint", "checkpoint"),
    )
    number = program.number()
    program.define(
        f"""
        original_{number}, count_{number} = {owner}.{name}, itertools.count(1)

        @functools.wraps(original_{number})
        def wrapper_{number}(*args, **kwargs):
            next(count_{number})
            return original_{number}(*args, **kwargs){program.pick("", " if True else None")}
        """
    )
    program.setup.append(f"{owner}.{name} = wrapper_{number}")
    if program.chance(0.6):
        program.ending.append(f"{owner}.{name} = original_{number}")
    program.ending.append(f"show('wrapper of {name}', next(count_{number}), {owner}.{name} is original_{number})")


@habit
def in_a_thread(program: Program) -> None:
    """A backward in a thread of its own."""
    program.backward = """
        thread = threading.Thread(target=loss.backward)
        thread.start(); thread.join()
    """


@habit
def live_or_dead(program: Program) -> None:
    """Whether tensors and graphs die as soon as nobody holds them."""
    program.hidden.append("weakref.finalize(h, print, 'hidden died', step)")
    program.loss.append("weakref.finalize(loss, print, 'loss died', step)")
    program.after_update.append("print('end of step', step)")


@habit
def attributes(program: Program) -> None:
    """Attributes of tensors, some of which make new tensors."""
    program.loss.append(
        program.pick(
            "show('attributes', h.T, h.mT, h.real, h.data, h.is_leaf, h.output_nr, h.retains_grad, h.names, h.layout)",
            "show('base', h._base, h._is_view(), h._version, h.storage_offset(), h.stride())",
            "h.note = 'mine'; show('note', h.note, h.__dict__)",
            "h.custom = loss; del h.custom; show('hooks', h._backward_hooks)",
            "show('grad of a non-leaf', h.grad)",
            "show('type', type(h), h.type(), h.__class__.__name__, h.is_cuda, h.element_size(), len(h), bool(h.sum() > 0))",
        )
    )


@habit
def named_modules_overridden(program: Program) -> None:
    """A model that counts how often it is asked."""
    program.define(
        """
        class Asked(nn.Sequential):
            asked = 0

            def named_modules(self, *args, **kwargs):
                Asked.asked += 1
                return super().named_modules(*args, **kwargs)

            def named_parameters(self, *args, **kwargs):
                Asked.asked += 1
                return super().named_parameters(*args, **kwargs)

            def __getattr__(self, name):
                if name.startswith("other"):
                    Asked.asked += 1
                    return 0
                return super().__getattr__(name)
        """
    )
    program.setup.append("model = Asked(*model)")
    program.ending.append("show('asked', Asked.asked)")


@habit
def data_parallel(program: Program) -> None:
    program.setup.append("model = nn.Sequential(nn.DataParallel(model))")


@habit
def sparse_gradient(program: Program) -> None:
    program.setup.append(
        """
        table = nn.Embedding(10, 6, sparse=True)
        rows = torch.optim.SparseAdam(table.parameters(), lr=0.1)
        """
    )
    program.hidden.append("h = h + table(torch.arange(5))")
    program.after_backward.append("show('sparse', table.weight.grad); rows.step(); rows.zero_grad()")


@habit
def second_loss(program: Program) -> None:
    program.loss.append(
        program.pick(
            "loss = loss + h.square().mean()",
            "loss = loss - 0.1 * sum(p.norm() for p in model.parameters())",
            "loss = torch.stack([loss, h.mean()]).sum()",
            "loss = loss.clone(); loss += 1",
            "loss.add_(0.5)",
            "loss = sum([loss, loss.detach()])",
        )
    )
