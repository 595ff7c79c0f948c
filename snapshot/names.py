"""The allow-list: which classes and functions a skeleton may name.

Knows neither torch nor any snapshot: it judges names before anything is imported, and what an
import then gave. Why each group is here is written beside it; what is not here is refused.
"""

import enum
import re
import sys
import types
from collections.abc import Mapping
from functools import cache
from typing import Any

from zerowake.snapshot.errors import ForbiddenClass

MODULE, OBJECT, ENUM, NAMEDTUPLE, CLASS, FUNCTION = (
    "module",
    "object",
    "enum",
    "namedtuple",
    "class",
    "function",
)

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z_]\w*", re.ASCII)

# Modules of libraries and what may be taken from them. Only files that define models,
# configurations and processors: not those that load, convert, train, download or run commands.
# A class as a value (CLASS) may be called by whoever finds it, so it comes from layers only:
# the constructors of some models download.
_LIBRARIES: list[tuple[str, frozenset[str]]] = [
    (r"torch\.nn\.modules\.[a-z]\w*", frozenset({MODULE, CLASS})),
    (r"transformers\.models\.[a-z]\w*\.modeling_\w+", frozenset({MODULE})),
    (
        r"transformers\.(activations|pytorch_utils|modeling_layers|modeling_utils)",
        frozenset({MODULE}),
    ),
    (r"transformers\.models\.[a-z]\w*\.configuration_\w+", frozenset({OBJECT})),
    (r"transformers\.(generation\.)?configuration_utils", frozenset({OBJECT})),
    (
        r"transformers\.models\.[a-z]\w*\."
        + r"(tokenization|(image_|video_)?processing|feature_extraction)_\w+",
        frozenset({OBJECT}),
    ),
    (r"transformers\.tokenization_utils\w*", frozenset({OBJECT, ENUM})),
    (r"transformers\.(utils\.generic|image_utils)", frozenset({ENUM})),
    (r"torchvision\.(models|ops)(\.\w+)+", frozenset({MODULE, CLASS})),
    (r"torchvision\.transforms\.(transforms|_presets|v2\.\w+)", frozenset({MODULE, OBJECT})),
    (r"torchvision\.models\.detection\._utils", frozenset({OBJECT})),
    (r"torchvision\.transforms\.functional", frozenset({ENUM})),
    (r"timm\.(models|layers)(\.\w+)+", frozenset({MODULE, CLASS, ENUM})),
    (r"diffusers\.models(\.\w+)+", frozenset({MODULE})),
    (r"sentence_transformers(\.\w+)*\.(models?|modules)(\.\w+)*", frozenset({MODULE})),
    (r"sentence_transformers(\.\w+)*\.(model_card|modality)", frozenset({OBJECT})),
]

# Library objects that are no nn.Module must descend from one of these: plain holders of settings.
_OBJECT_BASES = frozenset(
    {
        "transformers.configuration_utils:PreTrainedConfig",
        "transformers.configuration_utils:PretrainedConfig",
        "transformers.generation.configuration_utils:GenerationConfig",
        "transformers.tokenization_utils_base:PreTrainedTokenizerBase",
        "transformers.image_processing_base:ImageProcessingMixin",
        "transformers.feature_extraction_utils:FeatureExtractionMixin",
        "transformers.processing_utils:ProcessorMixin",
        "torchvision.transforms.transforms:Compose",
        "torchvision.transforms.transforms:ToTensor",
        "torchvision.transforms.transforms:PILToTensor",
        "torchvision.models.detection._utils:BalancedPositiveNegativeSampler",
        "torchvision.models.detection._utils:BoxCoder",
        "torchvision.models.detection._utils:Matcher",
        "huggingface_hub.repocard_data:CardData",
        "sentence_transformers.base.modality:InputFormatter",
    }
)

# Functions that take tensors and return tensors, and nothing else.
_FUNCTIONAL = """
    relu relu_ relu6 elu elu_ selu selu_ celu celu_ leaky_relu leaky_relu_ prelu rrelu glu gelu
    silu mish hardswish hardsigmoid hardtanh hardtanh_ hardshrink softshrink tanhshrink softplus
    softsign softmin softmax log_softmax gumbel_softmax logsigmoid sigmoid tanh threshold
    normalize layer_norm group_norm batch_norm instance_norm rms_norm local_response_norm linear
    bilinear embedding dropout dropout1d dropout2d dropout3d alpha_dropout pad interpolate
    grid_sample affine_grid pixel_shuffle pixel_unshuffle channel_shuffle unfold fold one_hot
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d lp_pool1d lp_pool2d cosine_similarity pairwise_distance
    scaled_dot_product_attention cross_entropy mse_loss l1_loss smooth_l1_loss nll_loss
"""
_TORCH = """
    abs acos acosh asin asinh atan atanh ceil cos cosh erf erfc exp exp2 expm1 floor frac log log10
    log1p log2 logit neg reciprocal relu round rsqrt sigmoid sign sin sinh softmax log_softmax
    sqrt square tan tanh trunc celu selu add sub mul div matmul mm bmm cat stack maximum minimum
    mean sum amax amin logsumexp
"""
FUNCTIONS: dict[str, frozenset[str]] = {
    "torch.nn.functional": frozenset(_FUNCTIONAL.split()),
    "torch": frozenset(_TORCH.split()),
}
# transformers keeps the function that computes rotary frequencies on the module
_ROPE = re.compile(
    r"transformers\.modeling_rope_utils:_compute_\w+_parameters"
    r"|transformers\.models\.[a-z]\w*\.modeling_\w+:[A-Z]\w*\.compute_default_rope_parameters",
    re.ASCII,
)

BUILTIN_TYPES = frozenset(
    {"bool", "int", "float", "complex", "str", "bytes", "list", "tuple", "dict", "set", "frozenset"}
)

# Libraries that take part in a snapshot: no author's file may stand before one of them, their
# versions are noted in the manifest, and another version makes a cached snapshot stale.
LIBRARIES = (
    "zerowake",
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
    "torchvision",
    "timm",
    "diffusers",
    "sentence_transformers",
)


def may_be_own(module: str) -> bool:
    """Whether an author's file may be this module: not when it would shadow Python or a library."""
    top = module.partition(".")[0]
    return top not in sys.stdlib_module_names and top not in LIBRARIES


def own_modules(paths: Mapping[str, object]) -> frozenset[str]:
    """The module names of source files: ``a/b.py`` is a.b, ``a/__init__.py`` is a."""
    found = set()
    for path in paths:
        parts = path.removesuffix(".py").split("/")
        if parts[-1] == "__init__":
            parts.pop()
        found.add(".".join(parts))
    return frozenset(found)


def check(name: str, kind: str, own: frozenset[str]) -> None:
    """Refuse ``name`` ("module:qualname") as a ``kind`` unless the list has it.

    ``own``: the modules of the snapshot's own code, which runs only when it is trusted; their
    names are free. Imports nothing. Raises ForbiddenClass.
    """
    match = _NAME.fullmatch(name) if len(name) <= 400 else None
    if match is None:
        raise ForbiddenClass(f"the skeleton names {name!r:.120}; wanted module:qualname")
    module, qualname = match.groups()
    if any(part.startswith("__") for part in (*module.split("."), *qualname.split("."))):
        raise ForbiddenClass(f"the skeleton names {name!r}: names with '__' are not taken")
    if module in own and may_be_own(module):
        return
    if kind == FUNCTION:
        if qualname in FUNCTIONS.get(module, ()) or _ROPE.fullmatch(name):
            return
    elif _PLAIN.fullmatch(qualname):
        if kind == CLASS and module == "builtins" and qualname in BUILTIN_TYPES:
            return
        if any(kind in kinds and rule.fullmatch(module) for rule, kinds in _rules()):
            return
    raise ForbiddenClass(
        f"the skeleton names {name!r} as {'an' if kind[0] in 'aeo' else 'a'} {kind}, which is not "
        "on the allow-list; nothing was imported. Keep such an object out of load() and make it "
        "in wake(self)."
    )


def look_up(name: str, kind: str, own: frozenset[str], module: types.ModuleType) -> Any:
    """What ``name`` stands for in the imported ``module``, if it is what ``kind`` claims.

    Taken from the module's own dictionary, never through getattr: a module's ``__getattr__`` or a
    class's descriptors have no say. Raises ForbiddenClass.
    """
    module_name, _, qualname = name.partition(":")
    found: Any = module
    for part in qualname.split("."):
        found = vars(found).get(part) if isinstance(found, type | types.ModuleType) else None
    if isinstance(found, staticmethod):
        found = found.__func__
    is_own = module_name in own
    if kind == FUNCTION:
        listed = module_name in FUNCTIONS  # builtin functions and dispatchers, chosen one by one
        fits = callable(found) if listed else type(found) is types.FunctionType
        defined = listed or _is_defined(found, module_name, qualname)
    elif isinstance(found, type):
        fits = _fits(found, kind, is_own)
        defined = _is_defined(found, module_name, qualname)
    else:
        fits = defined = False
    if fits and defined:
        return found
    raise ForbiddenClass(
        f"{name!r} is {_describe(found)} here; wanted {'an' if kind[0] in 'aeo' else 'a'} {kind} "
        "defined in that module"
    )


def function_name(obj: object) -> str | None:
    """The listed name of one of the libraries' functions, None for any other object."""
    if not callable(obj) or isinstance(obj, type):
        return None
    for module, listed in FUNCTIONS.items():
        there = vars(sys.modules[module]) if module in sys.modules else {}
        for name in listed:
            if there.get(name) is obj:
                return f"{module}:{name}"
    return None


def slots(cls: type) -> list[str]:
    """The names of a class's ``__slots__``, mangled as Python stores them."""
    found = []
    for base in cls.__mro__:
        given = vars(base).get("__slots__", ())
        for name in (given,) if isinstance(given, str) else tuple(given):
            private = name.startswith("__") and not name.endswith("__")
            mangled = f"_{base.__name__.lstrip('_')}{name}" if private else name
            if type(vars(base).get(mangled)) is types.MemberDescriptorType:
                found.append(mangled)
    return found


@cache
def _rules() -> list[tuple[re.Pattern[str], frozenset[str]]]:
    """Compiled once there is a name to be judged: 1.5 ms of a start."""
    return [(re.compile(pattern, re.ASCII), kinds) for pattern, kinds in _LIBRARIES]


def _fits(cls: type, kind: str, is_own: bool) -> bool:
    is_module = any(_full(base) == "torch.nn.modules.module:Module" for base in cls.__mro__)
    if kind == MODULE:
        return is_module
    if kind == ENUM:
        return issubclass(cls, enum.Enum)
    if kind == NAMEDTUPLE:
        return is_own and issubclass(cls, tuple) and isinstance(vars(cls).get("_fields"), tuple)
    is_holder = any(_full(base) in _OBJECT_BASES for base in cls.__mro__)
    if kind == OBJECT:
        return not is_module and (is_own or is_holder)
    builtin = cls.__module__ == "builtins" and cls.__qualname__ in BUILTIN_TYPES
    return is_own or is_module or is_holder or builtin or issubclass(cls, enum.Enum)


def _is_defined(found: object, module: str, qualname: str) -> bool:
    return (
        getattr(found, "__module__", None) == module
        and getattr(found, "__qualname__", None) == qualname
    )


def _full(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _describe(found: object) -> str:
    if found is None:
        return "not there"
    return f"{'the class' if isinstance(found, type) else type(found).__name__} {found!r:.80}"
