"""Every threshold by which something is judged, with its reason."""

from __future__ import annotations

# --- how often something must be seen ------------------------------------------------------------------------------

# Steps in which something went wrong that may go wrong once: a warm-up, a first call, a step skipped on purpose.
SLIPS = 2
# In one step an evaluation may lie inside of training (a metric, a sample to look at); what comes back is a state.
EVALUATION_STEPS = 2
# A program that only looks at gradients, as to choose a learning rate, calls backward once or twice without a step.
BACKWARDS_WITHOUT_STEP = 3
# Steps of an optimizer after which a group that it is given was added late, and not while it was being set up.
STEPS_BEFORE_A_GROUP = 3
# Steps after which gradients that are all exactly 0 are no start: in the first, zero-initialised layers send back 0.
STEPS_OF_ZEROS = 3
# Looks at single steps in which elements with a gradient of 0 moved: the first two may be those of Adam's averages.
MASKED_STEPS = 3
# Gradients in a row that are zero, after which a tensor counts as frozen: averages of 0.9 have faded by half.
ZEROS_FOR_GOOD = 8
# Steps in a row that a scaler keeps back to the end: while it settles, fewer make the scale 256 times smaller.
WITHHELD_IN_A_ROW = 8
# Steps after which it is no longer settling: then as many kept back as taken are no slips.
STEPS_TO_SETTLE = 24
# Optimizers of one line for the same tensors that make no more than these steps each: their averages never live.
REBUILT, REBUILT_STEPS = 5, 2
# Steps after which a loss has a course: over fewer it rises as the batches differ.
STEPS_OF_A_COURSE = 8
# Looks at single steps that left a value as it was to the last bit: fewer may fall on a warm-up from a rate of 0.
STILL_STEPS = 4
# Looks at steps at a rate of 0, the first 8 and every eighth: some 32 steps, after which a warm-up has begun.
LOOKS_AT_NO_RATE = 11
# Tensors in a row that have taken a place before a single gradient each tells that they are replaced in every step.
REPLACED_IN_A_ROW = 3
# Calls of one module that hang together: a cell that is unrolled by hand is seldom called as often in a step.
CALLS_IN_A_CHAIN = 12
# Steps through which a value's graph leads before it is followed: hidden states and momenta carried by hand live on for
# two or three.
STEPS_IN_A_CHAIN = 5
# Calls that hang together before they are followed; `CALLS_IN_A_CHAIN` are needed to tell them.
CALLS_TOGETHER = 8
# Results that have lived through two censuses, and in how many of the steps since the first there must be one: a window
# of the latest losses and a buffer that is emptied now and then stay below.
RESULTS_KEPT, STEPS_WITH_RESULTS = 6, 0.75
# How many times deeper than any graph that a backward has led through: what grows is not meant to be differentiated.
DEEPER = 3

# Times that the progress of steps is written over: a model may be put back to where it began, or to its best, once.
LOST = 3

# Looks at what an embedding is asked for: as many batches tell whether its row for padding is one.
PADDING_LOOKS = 8

# --- how large something must be -----------------------------------------------------------------------------------

# Of the largest gradient on the way: what is smaller changes nothing in float32 while the others learn.
VANISHED = 1e-5
# Powers of ten by which a stage shrinks a gradient that no chain of layers reaches at each of its links.
OPENING = -2
# Powers of ten that a chain must lose at one line for the line to be told: any deep network loses less somewhere.
SHRUNK = -3
# Of all that is lost on a way: what one stage loses more than this share of is no chain, but a scale.
AT_ONCE = 0.6
# A chain is the same factor again and again: fewer are layers of their own.
LINKS = 5
# A gradient whose norm is larger has elements that float16 can hold a small multiple of (its least is 6e-8).
ROUNDED = 1e-3
# A 2-norm that no clipped or normalised training reaches.
EXPLODED = 1e3
# Powers of ten by which the links of a chain make a gradient larger: 10 links of 1.8 each.
EXPLODED_ON_THE_WAY = 2.5
# How many times larger gradients become over a run where the updates lead away from the optimum.
DIVERGED = 1e4
# Of the largest gradient beside it: what is smaller is rounding, as of biases before a batch norm.
NOISE = 1e-4
# Of a GradScaler's scale: a limit for clipping that is no smaller was multiplied by the scale as well, for nobody clips
# gradients to a hundredth, and limits are mostly 0.1 to 10 while scales begin at 1,024 or 65,536.
SCALED_LIMIT = 1e-2

# Updates as large as the value itself in a first step leave nothing of what a layer was initialised to.
OVERSTEP = 1.0
# Looks at single steps that count as first ones: a schedule may begin with a rate of next to nothing.
FIRST_LOOKS = 3
# Of its norm, what a value moves in a step where ten thousand steps would change the second digit.
STANDSTILL = 1e-6
# A loss that changes by less than this share over the run has not learned; batches alone make it differ.
FLAT = 0.05
# Of the value, an update that trains: between a hundredth and a thousandth in most networks.
FITTING_UPDATE = 1e-3

# Of the targets, what may lie beyond a prediction's range: outliers, and noise about a limit.
BEYOND = 0.1

# Targets for each class in which a class that exists is missing by chance in less than 1 of 100 cases.
TARGETS_A_CLASS = 5

# Of the way that steps have led, what is undone where they are written over: averages of averages (Reptile, a round of
# federated learning) leave a tenth of it and more.
PROGRESS_LOST = 0.93
# Of the elements, what a write may leave as it was: limits and masks leave most.
UNTOUCHED = 0.05

# How often a row is looked up beside the mean of the others, if it is one of them: what stands for nothing is much
# rarer (unknown words), or much more frequent (the rest of short sequences).
LIKE_OTHERS = (0.25, 4.0)

# --- precision -----------------------------------------------------------------------------------------------------

# Learning rates below it are 0 but for what a schedule leaves of them.
NO_RATE = 1e-12
# The square root of the range of float32, and of bfloat16.
SQUARABLE = 1e18
# Half the distance from 1 to the next number of a type.
EPSILON = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
# Elements of a larger tensor at which its value is measured (`gradscope.probes.training.movement` picks them).
SAMPLE = 4_096
# How many times too small an update may be estimated by rate * gradient: averages and normalisation make it larger.
MARGIN = 64
# Relative differences between quotients of equal numbers, in float32.
ROUNDING = 1e-6
# Relative differences between numbers that are the same but for rounding, and between values that have changed.
EXACT, OTHER = 1e-9, 1e-4
