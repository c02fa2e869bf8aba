"""What each function of torch is: the one place where names of operations stand, as `short_name` spells them.

An operation may be several things. Nodes of the autograd graph are told by the names of their kind (`Addmm`), as a
profile has them.
"""

from __future__ import annotations

from functools import cache

from gradscope.graph.facts import Operation
from gradscope.graph.naming import short_name


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --- what becomes of the history -----------------------------------------------------------------------------------
DETACHES = _names("detach detach_ data")
# A new tensor is made of values, and the history stays behind.
REBUILDS = _names("tensor as_tensor asarray scalar_tensor Parameter Variable new_tensor deepcopy")
# Constructors that make a tensor of plain numbers, as the program calls them.
CONSTRUCTS = _names("tensor as_tensor asarray Tensor FloatTensor DoubleTensor HalfTensor LongTensor new_tensor")
FACTORIES = _names("arange tensor randint zeros ones full eye linspace as_tensor empty")  # they take a dtype
ENTERS = CONSTRUCTS | _names("from_numpy full")  # numbers of Python or numpy become a tensor
# The value leaves torch: what is made of it later is a constant.
EXITS = _names("item tolist numpy array float int index complex")
CHOOSES = _names("int index")  # whole numbers, which select a place, a length, a crop
FLAGS = frozenset({"requires_grad_", "requires_grad ="})  # they set a flag of a tensor
WRITES_A_LEAF = _names("copy_ set_ fill_ setitem add_")
# They change in place what has no twin that gives a new tensor, or more of a tensor than its values.
CHANGES_MORE = _names(
    "set_ detach_ requires_grad_ resize_ resize_as_ share_memory_ xavier_uniform_ xavier_normal_ orthogonal_ "
    "trunc_normal_ ones_ zeros_ eye_ dirac_ sparse_"
)
SETS_DATA = frozenset({"data ="})  # a write that torch's count of changes does not show
UNSCALES = _names("_amp_foreach_non_finite_check_and_unscale_")  # what a GradScaler does to gradients
GRADIENTS = _names("grad")  # `torch.autograd.grad`, and reads of `Tensor.grad`

# --- what becomes of the values ------------------------------------------------------------------------------------
# They fill their first operand anew: nothing of what it held is left.
FILLS = _names(
    "zero_ fill_ copy_ normal_ uniform_ random_ bernoulli_ exponential_ cauchy_ geometric_ log_normal_ constant_ "
    "kaiming_normal_ kaiming_uniform_"
)
FITS = _names(
    "to type_as expand_as view_as reshape_as resize_as resize_as_"
)  # the first to the shape or type of others
SIDE_BY_SIDE = _names("broadcast_tensors meshgrid atleast_1d atleast_2d atleast_3d")  # each operand gives a result
# They give views of what they take: what is written into the result is written into that.
SINGLE_VIEWS = _names(
    "getitem select narrow view view_as reshape reshape_as flatten squeeze unsqueeze transpose permute t T mT H mH "
    "movedim swapaxes swapdims unflatten expand expand_as diagonal as_strided unfold real imag ravel"
)
# They give several at once, and autograd follows no change of one of them.
SEVERAL_VIEWS = _names("iter unbind split chunk tensor_split hsplit vsplit dsplit split_with_sizes unsafe_chunk")
COPIES = _names("data detach clone copy_")
COPIES_A_PARAMETER = COPIES | _names("deepcopy Parameter")

# Draws that follow their parameters continuously, and draws of classes, counts, or one of several components.
DRAWS_FROM_A_SCALE = _names(
    "normal normal_ rand randn rand_like randn_like uniform_ exponential_ cauchy_ _standard_gamma _sample_dirichlet"
)
CHOICES = _names("bernoulli multinomial poisson binomial geometric_ gather one_hot")

# --- arithmetic ----------------------------------------------------------------------------------------------------
SUBTRACTS = _names("sub sub_ isub")
SUMS = _names("add radd iadd add_ sub rsub isub sub_ sum mean stack neg")
REDUCES = _names("sum mean")
SCALES = _names("mul rmul imul div truediv mul_ div_ view reshape squeeze to float")
DIFFERENCES = _names("sub rsub add radd subtract")
OF_MATH = _names("sqrt exp log log2 log10 log1p expm1 sin cos tan sinh cosh tanh asin acos atan")  # as in `math`
DIVIDES = _names("div truediv divide true_divide div_ itruediv")
MULTIPLIES = _names("mul rmul multiply mul_ imul")
BOUNDS = _names("clamp clip clamp_min add radd maximum abs")  # what keeps a divisor away from 0
PRODUCTS = _names("mul rmul multiply div truediv")
CASTS = _names("to float double half type detach clone neg contiguous")
RESHAPES = _names(
    "unsqueeze getitem view reshape expand expand_as unflatten mean sum max min amax amin logsumexp gather select norm "
    "std var median quantile unsqueeze_"
)
# Element by element, or a reduction: no layer lies between such operations and the loss.
ELEMENTWISE = _names(
    "sub rsub add radd iadd isub mul rmul imul div truediv itruediv neg pow square abs sqrt log log1p exp expm1 cosh "
    "clamp clip clamp_min clamp_max relu softplus logsigmoid where maximum minimum max min mean sum nanmean nansum "
    "logsumexp norm vector_norm subtract multiply masked_select getitem rpow flatten view reshape squeeze stack cat to "
    "float masked_fill logcosh"
)
# These leave each element what it is, or nearly so.
KEEPS_ELEMENTS = _names(
    "view reshape flatten squeeze unsqueeze transpose permute t T mT contiguous getitem select index_select gather "
    "masked_select narrow chunk split unbind cat stack to float double half bfloat16 type clone clamp clip clamp_min "
    "clamp_max expand expand_as view_as reshape_as type_as movedim swapaxes unflatten dropout identity requires_grad_ "
    "add sub where masked_fill nan_to_num"
)

# --- weights and masks ---------------------------------------------------------------------------------------------
PROBABILITIES = _names("softmax")
MASKS = _names("masked_fill masked_fill_ where setitem index_fill index_fill_")  # they put a number in some places
COMPLEMENTS = _names("sub rsub invert logical_not bitwise_not eq ne lt le gt ge")
COMPARISONS = _names("eq ne lt le gt ge")
TRIANGLES = _names("tril triu tril_ triu_")
# What is drawn by chance.
DRAWS = _names("rand rand_like bernoulli bernoulli_ dropout empty_like uniform_ multinomial gumbel_softmax")
# Weights stay weights, of the same things.
KEEPS_WEIGHTS = _names(
    "dropout alpha_dropout to float double half bfloat16 type clone contiguous view reshape expand identity type_as "
    "squeeze unsqueeze nan_to_num mul imul requires_grad_"
)
NORMALISES = _names("sum div truediv itruediv div_ normalize divide log softmax renorm amax max")
CONTRACTS = _names("matmul rmatmul bmm einsum mm baddbmm mul rmul mv")

# --- axes ----------------------------------------------------------------------------------------------------------
TRANSPOSES = _names("transpose permute t T mT swapaxes swapdims movedim moveaxis adjoint")
VIEWS = _names("view reshape flatten unflatten squeeze unsqueeze view_as reshape_as getitem")
RECUTS = _names("view reshape view_as reshape_as unflatten")
ROW_BY_ROW = _names("linear layer_norm softmax log_softmax dropout relu gelu silu tanh sigmoid rms_norm normalize")
SUMMARIES = _names("mean sum var std var_mean std_mean norm vector_norm amax amin max min")
PADS = _names("pad cat concat constant_pad_nd")
PICKS_A_CLASS = _names("nll_loss")
MATRIX_PRODUCTS = _names("matmul bmm mm")
PRODUCTS_OF_MATRICES = _names("matmul bmm mm einsum baddbmm")
SUMS_AWAY = _names("sum mean logsumexp nansum")

# --- losses and what they take -------------------------------------------------------------------------------------
SOFTMAXES = _names("softmax log_softmax gumbel_softmax")
# What is squashed, and how.
SQUASHES = {
    "cross_entropy": "softmax",
    "softmax": "softmax",
    "log_softmax": "softmax",
    "binary_cross_entropy_with_logits": "sigmoid",
    "multilabel_soft_margin_loss": "sigmoid",
    "sigmoid": "sigmoid",
    "logsigmoid": "sigmoid",
}
SQUASHING = frozenset(SQUASHES)
LOSSES_OF_LOGITS = _names("cross_entropy binary_cross_entropy_with_logits multilabel_soft_margin_loss")
# The prediction comes first, and they are not the same the other way round.
DIRECTED_LOSSES = _names("kl_div cross_entropy binary_cross_entropy binary_cross_entropy_with_logits poisson_nll_loss")
UNIFORM = _names("full full_like ones ones_like zeros zeros_like new_full new_ones new_zeros")  # one number everywhere
LOSSES_OF_LOGARITHMS = _names("nll_loss ctc_loss kl_div")
LIKELIHOODS = _names("nll_loss binary_cross_entropy kl_div log log2 log10")
# They compare prediction and target element by element.
COMPARES = _names("mse_loss l1_loss smooth_l1_loss huber_loss kl_div poisson_nll_loss soft_margin_loss")
# They work in one way in training, and in another in evaluation.
MODED = _names("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout batch_norm lstm gru")
# Results are compared with what they should be.
SCORES = COMPARES | LOSSES_OF_LOGITS | LOSSES_OF_LOGARITHMS | _names("binary_cross_entropy eq ne sub rsub isclose")
READS = _names("bool print")
# Of activations, what they give nothing beyond.
RANGES = {
    **dict.fromkeys(("relu", "relu_", "softplus"), (0.0, float("inf"))),
    **dict.fromkeys(("sigmoid", "hardsigmoid", "sigmoid_"), (0.0, 1.0)),
    **dict.fromkeys(("tanh", "hardtanh", "tanh_"), (-1.0, 1.0)),
    "relu6": (0.0, 6.0),
    "logsigmoid": (float("-inf"), 0.0),
}
RECTIFIES = _names("relu relu_ relu6")
DROPOUTS = _names("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout dropout_")
# They choose and rearrange elements, and change none.
PICKS = _names(
    "view reshape flatten squeeze unsqueeze gather getitem select index_select transpose permute contiguous to float "
    "double narrow movedim swapaxes view_as reshape_as squeeze_ take_along_dim unbind chunk split clone t"
)
LOG_SOFTMAXES = _names("log_softmax")
TAKES_LOGITS = LOG_SOFTMAXES | _names("cross_entropy binary_cross_entropy_with_logits")
COMPARES_VALUES = _names("mse_loss l1_loss smooth_l1_loss huber_loss sub rsub subtract isub")
EVEN = _names("square pow abs norm vector_norm logcosh cosh mul sqrt")  # the same for a difference and its negative
COMPARES_PAIRS = COMPARES | _names("binary_cross_entropy binary_cross_entropy_with_logits gaussian_nll_loss")
LOSSES_OF_CLASSES = _names("cross_entropy nll_loss multi_margin_loss")
LOSSES = COMPARES_PAIRS | LOSSES_OF_CLASSES

# --- layers, and what may not go into them -------------------------------------------------------------------------
LINEAR = _names("linear")
CONVOLUTIONS = {f"conv{kind}{count}d": count for kind in ("", "_transpose") for count in (1, 2, 3)}
CONVOLVES = frozenset(CONVOLUTIONS)
TRANSPOSED = _names("conv_transpose1d conv_transpose2d conv_transpose3d")
POOLS = _names(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d_with_indices max_pool2d_with_indices"
)
NORMS_CHANNELS = _names("batch_norm instance_norm group_norm BatchNorm1d BatchNorm2d BatchNorm3d")
RECURRENT_MODULES = _names("LSTM GRU RNN")
CELLS = _names("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell LSTMCell GRUCell RNNCell")
ATTENTION = _names("multi_head_attention_forward")
LOOKS_UP = _names("embedding embedding_bag")
MULTIPLIES_MATRICES = _names("matmul rmatmul mm bmm mv dot addmm baddbmm")
JOINS = _names("cat concat concatenate stack vstack hstack")
CUTS_ANEW = _names("view reshape")
FLATTENS = _names("flatten view reshape")
MOVES_AXES = _names("transpose permute T t mT H mH movedim swapaxes moveaxis expand")
# Which argument of a module's constructor says what size it takes: its place and its name.
TAKES_SIZE = {
    "Linear": (0, "in_features"),
    **{f"{name}{count}d": (0, "in_channels") for name in ("Conv", "ConvTranspose") for count in (1, 2, 3)},
    **{f"{name}{count}d": (0, "num_features") for name in ("BatchNorm", "InstanceNorm") for count in (1, 2, 3)},
    "LayerNorm": (0, "normalized_shape"),
    "RMSNorm": (0, "normalized_shape"),
    "GroupNorm": (1, "num_channels"),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"), (0, "input_size")),
    "MultiheadAttention": (0, "embed_dim"),
    "TransformerEncoderLayer": (0, "d_model"),
    "TransformerDecoderLayer": (0, "d_model"),
    "Embedding": (0, "num_embeddings"),
    "EmbeddingBag": (0, "num_embeddings"),
}
GIVES_SIZE = {"Linear": (1, "out_features")}

WRITES_PARTS = _names("setitem")  # what it gives is what it changed
REENTRANT = _names("CheckpointFunction")  # a function that backward runs again, in a backward of its own
DDP_SINKS = _names("_DDPSink")  # the end of a forward of a DDP that looks for unused parameters
RECURRENT = _names("lstm gru rnn_tanh rnn_relu")
TAKES_PLACES = _names("gather scatter scatter_ scatter_add scatter_add_ take_along_dim")
TAKES_A_PLACE = _names("getitem select")

# --- nodes of the autograd graph -----------------------------------------------------------------------------------
PRODUCT_NODES = _names("Mul Mm Addmm Bmm Baddbmm Convolution Mv Dot")
# What they give is not finite where their operand leaves the numbers for which they are defined.
SINGULAR_NODES = _names("Log Log2 Log10 Log1P Sqrt Rsqrt Pow Div Reciprocal Acos Asin Acosh Atanh Logit Erfinv")
# Their derivative is exactly 0 where what comes in lies beyond their limits.
FLAT_NODES = _names(
    "Relu Threshold Clamp ClampMin ClampMax Hardtanh Hardsigmoid Sigmoid Tanh Elu Softplus Round Floor Ceil Sign"
)
SOFTMAX_NODES = _names("Softmax LogSoftmax")
NORM_NODES = _names("NativeBatchNorm CudnnBatchNorm NativeLayerNorm NativeGroupNorm")


def is_a(operation: Operation, *kinds: frozenset[str]) -> bool:
    """Whether an operation is of one of these kinds."""
    name = spelled(operation.name)
    for kind in kinds:  # noqa: SIM110 - asked of every operation by many rules: a generator takes twice as long
        if name in kind:
            return True
    return False


@cache
def spelled(name: str) -> str:
    """An operation's name as it stands here: setting an attribute is told from reading it (`data =`)."""
    return short_name(name) + " =" if name.endswith(" =") else short_name(name)


def ends_history(operation: Operation) -> bool:
    """Whether an operation gives no history whatever it takes: by what it is, or since grad mode was off."""
    return is_a(operation, DETACHES, REBUILDS, GRADIENTS) or not operation.grad_enabled
