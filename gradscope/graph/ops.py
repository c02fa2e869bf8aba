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
ENTERS = CONSTRUCTS | _names("from_numpy full")  # numbers of Python or numpy become a tensor
# The value leaves torch: what is made of it later is a constant.
EXITS = _names("item tolist numpy array float int index complex")
CHOOSES = _names("int index")  # whole numbers, which select a place, a length, a crop
FLAGS = frozenset({"requires_grad_", "requires_grad ="})  # they set a flag of a tensor
WRITES_A_LEAF = _names("copy_ set_ fill_ setitem add_")
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
DRAWS = _names(
    "normal normal_ rand randn rand_like randn_like uniform_ exponential_ cauchy_ _standard_gamma _sample_dirichlet"
)
CHOICES = _names("bernoulli multinomial poisson binomial geometric_ gather one_hot")

# --- arithmetic ----------------------------------------------------------------------------------------------------
SUBTRACTS = _names("sub sub_ isub")
SUMS = _names("add radd iadd add_ sub rsub isub sub_ sum mean stack neg")
REDUCES = _names("sum mean")
SCALES = _names("mul rmul imul div truediv mul_ div_ view reshape squeeze to float")
DIFFERENCES = _names("sub rsub add radd subtract")
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
LOSSES_OF_LOGARITHMS = _names("nll_loss ctc_loss kl_div")
LIKELIHOODS = _names("nll_loss binary_cross_entropy kl_div log log2 log10")
# They compare prediction and target element by element.
COMPARES = _names("mse_loss l1_loss smooth_l1_loss huber_loss kl_div poisson_nll_loss soft_margin_loss")
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
RECURRENT = _names("lstm gru rnn_tanh rnn_relu")
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
    return any(name in kind for kind in kinds)


@cache
def spelled(name: str) -> str:
    """An operation's name as it stands here: setting an attribute is told from reading it (`data =`)."""
    return short_name(name) + " =" if name.endswith(" =") else short_name(name)


def ends_history(operation: Operation) -> bool:
    """Whether an operation gives no history whatever it takes: by what it is, or since grad mode was off."""
    return is_a(operation, DETACHES, REBUILDS, GRADIENTS) or not operation.grad_enabled
