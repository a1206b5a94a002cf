"""A model's folder on disk: what is in it, load it, fetch it from the hub.

The leaf that both `recipes` and `serving` import.  It knows the layouts in
which a Hugging Face checkpoint is found (bare, inside an MLflow model, inside
an imported catalog model), full weights or a LoRA adapter, and nothing of jobs,
assets or requests.  Torch and transformers are imported where they are used, so
that importing this module costs nothing.

No code from a model's folder is ever run unless `trust_remote_code` is given by
the caller in so many words: transformers' own classes are used otherwise.
Weights are read from safetensors alone: to read a pickle is to run it.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Where the Hugging Face folder lies inside a model, most specific last; origins:
# bare checkpoints, MLflow's transformers flavour, Azure's older flavour, catalog imports, ours.
MODEL_PLACES = (".", "model", "data/model", "model_artifact/model", "artifacts/model")
TOKENIZER_PLACES = ("components/tokenizer", "data/tokenizer", "tokenizer")
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What a configuration may say; more is no model but a mistake, or a trap for the memory.
MOST = {
    "hidden_size": 10**6,
    "intermediate_size": 10**7,
    "num_hidden_layers": 10**4,
    "num_attention_heads": 10**5,
    "num_key_value_heads": 10**5,
    "max_position_embeddings": 10**9,
    "vocab_size": 10**8,
    "d_model": 10**6,
    "encoder_layers": 10**4,
    "decoder_layers": 10**4,
    "encoder_ffn_dim": 10**7,
    "decoder_ffn_dim": 10**7,
    "projection_dim": 10**6,
}
FETCHED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
ADAPTER = "adapter_config.json"


class NoModel(Exception):
    """The folder holds no model that can be loaded."""


def find(folder: str | Path) -> Path:
    """The Hugging Face folder (with config.json or adapter_config.json) inside `folder`."""
    top = Path(folder)
    if not top.is_dir():
        raise NoModel(f"{top}: there is no such folder")
    for candidate in _candidates(top):
        if (candidate / ADAPTER).is_file() or (candidate / "config.json").is_file():
            return candidate
    looked = ", ".join(place for place in MODEL_PLACES if place != ".")
    raise NoModel(f"{top}: no config.json or adapter_config.json here, nor in {looked}")


def is_adapter(folder: str | Path) -> bool:
    """True when what lies there is a LoRA adapter, to be put on a base model."""
    return (find(folder) / ADAPTER).is_file()


def base(folder: str | Path) -> Path | str:
    """An adapter's base: `base/` inside it, else the path or hub id its configuration names."""
    here = find(folder)
    if (here / "base" / "config.json").is_file():
        return here / "base"
    named = str(_json(here / ADAPTER).get("base_model_name_or_path") or "")
    if not named:
        raise NoModel(f"{here / ADAPTER}: base_model_name_or_path is missing")
    return Path(named) if Path(named).is_dir() else named


def weights(folder: str | Path) -> list[Path]:
    """The weight files of the model in `folder`; none when only its description is there."""
    return sorted(find(folder).glob("*.safetensors"))


def check(folder: str | Path) -> None:
    """NoModel where neither weights are nor a name to fetch them by, or the config is no model's.

    It reads no weights and imports nothing heavy: to be asked before work begins.
    """
    if hub_id(folder):
        return
    here = find(folder)
    if not weights(here) and not _read_as_tensors(here):
        raise _without_weights(here)
    if (here / "config.json").is_file():
        _consider(here)


def hub_id(folder: str | Path) -> str:
    """The hub's name of the model that a catalog folder stands for; "" when it names none."""
    return _told(folder, "huggingface_model_id")


def stand_in_for(folder: str | Path) -> str:
    """The model whose place a stand-in takes, tuned or not; "" for a model that is its own."""
    return _told(folder, "stand_in_for")


def fetch(folder: str | Path, *, trust_remote_code: bool = False) -> Path:
    """The Hugging Face folder with weights: what lies there, else what the hub has under its name.

    Only weights in safetensors, configuration and tokenizer files are fetched; code
    only when `trust_remote_code` is given.  NoModel says why when there is neither.
    """
    name = hub_id(folder)
    try:
        here = find(folder)
    except NoModel:
        if not name:
            raise
        return download(name, trust_remote_code=trust_remote_code)
    if weights(folder):
        return here
    if not name:
        raise _without_weights(here)
    return download(name, trust_remote_code=trust_remote_code)


def download(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """The folder of the hub's model `name`, from the cache where it is already there."""
    import huggingface_hub

    patterns = [*FETCHED, *(("*.py",) if trust_remote_code else ())]
    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
        )
    except Exception as error:  # the hub's client raises httpx, OSError and its own kinds alike
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NoModel(
            f"{name} has no weights on this machine and could not be fetched from the Hugging Face"
            f" hub ({reason}); import it from a folder, or run where the hub can be reached"
        ) from error


def tokenizer(folder: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer that goes with the model in `folder`, wherever that layout keeps it."""
    from transformers import AutoTokenizer

    for place in _tokenizer_places(Path(folder)):
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(place), trust_remote_code=trust_remote_code
            )
            return made
    raise NoModel(f"{folder}: there is no tokenizer in this model")


def processor(folder: str | Path) -> Any:
    """The processor (pictures and text) that goes with the vision model in `folder`."""
    from transformers import AutoProcessor

    here = find(folder)
    if (here / ADAPTER).is_file() and not (here / "processor_config.json").is_file():
        under = base(here)
        here = find(under) if isinstance(under, Path) else download(under)
    return AutoProcessor.from_pretrained(str(here))


def load(
    folder: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """The model in `folder`, an adapter put on its base; in evaluation mode on `device`.

    `dtype` is transformers' word ("auto", "float32", "bfloat16", "float16"); `options`
    go to `from_pretrained` (attn_implementation, ignore_mismatched_sizes, …).
    """
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code, **options}
    options["use_safetensors"] = True
    here = find(folder)
    if (here / ADAPTER).is_file():
        from peft import PeftModel

        if not weights(here):
            raise _without_weights(here)
        under = base(here)
        under = find(under) if isinstance(under, Path) else download(under)
        _consider(under)
        model: Any = _class(under).from_pretrained(str(under), **options)
        with warnings.catch_warnings():
            # peft still asks transformers under a name that transformers has deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            model = PeftModel.from_pretrained(model, str(here))
    else:
        here = fetch(folder, trust_remote_code=trust_remote_code)
        _consider(here)
        model = _class(here).from_pretrained(str(here), **options)
    if device is not None:
        model = model.to(device)
    loaded: PreTrainedModel = model.eval()
    return loaded


def _class(here: Path) -> Any:
    """Florence-2 reads pictures and has a class of its own; the rest are language models."""
    import transformers

    if _json(here / "config.json").get("model_type") == "florence2":
        return transformers.Florence2ForConditionalGeneration
    return transformers.AutoModelForCausalLM


def _told(folder: str | Path, word: str) -> str:
    """What the MLmodel of a model, or beside its weights, says under a word; "" for nothing."""
    for manifest in (Path(folder) / "MLmodel", Path(folder).parent / "MLmodel"):
        if manifest.is_file():
            import yaml

            try:
                document = yaml.safe_load(manifest.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise NoModel(f"{manifest}: is no MLmodel ({error})") from error
            metadata = document.get("metadata") if isinstance(document, dict) else None
            found = metadata.get(word) if isinstance(metadata, dict) else None
            if found:
                return str(found)
    return ""


def _without_weights(here: Path) -> NoModel:
    pickles = sorted(path.name for pattern in PICKLES for path in here.glob(pattern))
    if pickles:
        return NoModel(
            f"{here}: the weights are pickles ({', '.join(pickles[:3])}), which run code when they"
            " are read; convert them to safetensors"
        )
    return NoModel(
        f"{here}: there are no weights (*.safetensors) here,"
        " and no MLmodel names a model of the hub to fetch them from"
    )


def _read_as_tensors(here: Path) -> bool:
    """Whether the weights are the one pickle that importing takes, for nothing in it is run."""
    kind = _json(here / "config.json").get("model_type")
    return kind == "florence2" and (here / "pytorch_model.bin").is_file()


def _consider(here: Path) -> None:
    """NoModel, naming the field, for a configuration that would only exhaust the memory."""
    config = _json(here / "config.json")
    parts = [config, *(config.get(part) for part in ("text_config", "vision_config"))]
    for part in (part for part in parts if isinstance(part, dict)):
        for name, most in MOST.items():
            value = part.get(name)
            if isinstance(value, int) and not 0 <= value <= most:
                raise NoModel(f"{here / 'config.json'}: {name} is {value}; it must be 0 to {most}")


def _candidates(top: Path) -> Iterator[Path]:
    for place in MODEL_PLACES:
        yield top / place if place != "." else top
    # Azure keeps the last path component under the model's folder, so one folder may wrap another.
    inner = [path for path in top.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if len(inner) == 1:
        for place in MODEL_PLACES:
            yield inner[0] / place if place != "." else inner[0]


def _tokenizer_places(top: Path) -> Iterator[Path]:
    yield top
    here = find(top)
    yield here
    for root in (top, here.parent, here.parent.parent):
        for place in TOKENIZER_PLACES:
            yield root / place
    if (here / ADAPTER).is_file():
        under = base(here)
        yield from _tokenizer_places(under) if isinstance(under, Path) else [download(under)]


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NoModel(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(document, dict):
        raise NoModel(f"{path}: is not a JSON object")
    return document
