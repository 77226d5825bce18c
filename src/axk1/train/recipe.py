"""What a recipe says, and whether it makes sense: everything that can be known before training starts."""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from axk1.config import PRESETS, AXK1Config
from axk1.tasks import TASKS as TEMPLATE_TASKS
from axk1.tasks.situations import TASKS as SITUATION_TASKS
from axk1.train.board import check_board
from axk1.train.corpus import PARTS
from axk1.train.sources import Source, check_source

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "inverse_sqrt", "polynomial")
DTYPES = ("auto", "bfloat16", "float32")
TASKS = tuple(dict.fromkeys((*TEMPLATE_TASKS, *SITUATION_TASKS)))
_WORDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}


@dataclass(frozen=True)
class Stage:
    """One run of the optimizer: ``steps`` steps over its own data, starting from the stage before.

    Raises:
        ValueError: a value that makes no sense, in one sentence.
    """

    name: str
    steps: int
    learning_rate: float
    schedule: str
    warmup_steps: int = 0
    muon_learning_rate: float = 0.0
    """Learning rate of the matrices under Muon; 0: AdamW for all."""
    start: str = ""
    """The stage whose weights it begins with; empty: the stage before."""
    merge: dict[str, float] = field(default_factory=dict)
    """Earlier stages whose weighted sum it begins with (``axk1 merge``), in place of ``start``."""
    data: dict[str, Any] = field(default_factory=dict)
    """Files, folders or names on the hub, and the share of tokens from each, or a table with the fields of
    :class:`axk1.train.sources.Source`."""
    text: float = 0.0
    think: float = 0.65
    dialogue: float = 0.08
    learn_prompt: bool = False
    tasks: dict[str, float] = field(default_factory=dict)
    """Share of each task in single problems, rescaled to 1; empty: the shares of the held-out problems. With
    situations it is theirs, and the templates keep their own shares."""
    templates: float = 1.0
    """Share of problems from the first edition's templates, the others are situations (``axk1.tasks.situations``);
    with any situations, all reasoning is in columns."""
    learn: str = "all"
    """What is trained: ``all``, or ``mtp`` for the MTP modules after a trunk that stays as it is, to the bit."""
    drafts: int = 0
    """Tokens the MTP module learns to draft one after the other; 0: as many as there are modules."""
    row_tokens: int = 0
    """Length of this stage's rows; 0: the recipe's."""
    batch_rows: int = 0
    """Rows of a step of this stage; 0: the recipe's."""
    rope_parameters: dict[str, Any] = field(default_factory=dict)
    """Rotary settings from this stage on, in place of those before; ``rope_theta`` stays unless it is among them."""
    max_position_embeddings: int = 0
    """Positions of the model from this stage on; 0: ``factor`` times ``original_max_position_embeddings`` of
    ``rope_parameters`` where these have both, else those before."""

    def __post_init__(self) -> None:
        where = f'stage "{self.name}"'
        if not self.name or Path(self.name).name != self.name or self.name in (".", ".."):
            raise ValueError(f"{where}: its name is that of its folder, so it cannot be empty or hold a '/'")
        _one_of(where, "learn", self.learn, ("all", "mtp"))
        _one_of(where, "schedule", self.schedule, SCHEDULES)
        _within(where, self, 1, math.inf, "steps")
        _within(where, self, 0, self.steps, "warmup_steps")
        _within(where, self, 0, math.inf, "muon_learning_rate", "drafts", "row_tokens", "batch_rows")
        _within(where, self, 0, math.inf, "max_position_embeddings")
        _within(where, self, 0, 1, "text", "think", "dialogue", "templates")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"{where}: learning_rate = {self.learning_rate} must be above 0")
        for task, share in self.tasks.items():
            if task not in TASKS:
                raise ValueError(f"{where}: tasks.{task} is no task{_closest(task, TASKS)}")
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
                raise ValueError(f"{where}: tasks.{task} = {share!r} must be a share, 0 or more")
        if self.rope_parameters and "rope_type" not in self.rope_parameters:
            raise ValueError(f'{where}: rope_parameters has no rope_type, such as "yarn"')
        for key in ("factor", "original_max_position_embeddings"):  # transformers would take the model's own length
            if self.rope_parameters.get("rope_type") == "yarn" and key not in self.rope_parameters:
                raise ValueError(f"{where}: rope_parameters has no {key}, which yarn needs")
        for key, share in self.merge.items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not math.isfinite(share):
                raise ValueError(f"{where}: merge.{key} = {share!r} must be a number")
        if sum(source.share for source in self.sources().values()) + self.text > 1 + 1e-9:
            raise ValueError(f"{where}: the shares of data and text must be 1 at most in all")
        if self.start and self.merge:
            raise ValueError(f"{where}: start and merge both say what it begins with; leave one out")
        if self.merge and (len(self.merge) < 2 or abs(sum(self.merge.values()) - 1) > 1e-6):
            raise ValueError(f"{where}: merge must name two stages or more, whose shares sum to 1")
        if self.tasks and not any(self.tasks.values()):
            raise ValueError(f"{where}: all shares of its tasks are 0; leave the task that it is for")

    def sources(self) -> dict[str, Source]:
        """What ``data`` says, by the names of files, folders and datasets.

        Raises:
            ValueError: a share or a table that makes no sense, in one sentence.
        """
        return {name: _source(f'stage "{self.name}": data."{name}"', given) for name, given in self.data.items()}

    def changes(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the configuration that this stage changes; ``before`` are the rotary settings until then."""
        rope, found = self.rope_parameters, {}
        if rope:
            found["rope_parameters"] = {"rope_theta": before.get("rope_theta"), **rope}
        if self.max_position_embeddings:
            found["max_position_embeddings"] = self.max_position_embeddings
        elif "factor" in rope and "original_max_position_embeddings" in rope:
            with suppress(TypeError, ValueError, OverflowError):  # the configuration says what is wrong with them
                found["max_position_embeddings"] = int(rope["factor"] * rope["original_max_position_embeddings"])
        return found


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all stages of a run share: its data's shape and the optimizer's settings.

    Raises:
        ValueError: a value that makes no sense, in one sentence.
    """

    seed: int = 0
    row_tokens: int = 256
    batch_rows: int = 16
    weight_decay: float = 0.05
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0
    router_bias_update_rate: float = 0.001
    save_steps: int = 100
    dtype: str = "auto"
    """Of matrix products, ``bfloat16`` or ``float32``; ``auto``: bfloat16 where the processor is fast in it."""
    tensorboard: bool = False
    """Write what is logged for TensorBoard too, to ``tensorboard`` in the folder of each stage."""

    def __post_init__(self) -> None:
        where = "the recipe"
        _one_of(where, "dtype", self.dtype, DTYPES)
        _within(where, self, 1, math.inf, "row_tokens", "batch_rows", "save_steps")
        _within(where, self, 0, 2**31, "seed")
        _within(where, self, 0, 1, "adam_beta2", "router_bias_update_rate")
        _within(where, self, 0, math.inf, "weight_decay", "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """A complete run; the fields are explained in ``recipes/nano.toml``. Paths are relative to the working folder.

    Raises:
        ValueError: a value that makes no sense, in one sentence.
    """

    preset: str
    tokenizer: str
    stage: list[Stage]
    corpus: str = "corpus"
    mtp_loss_weight: float = 0.3
    unit_init: bool = True
    """Starting weights of ``initialize.py`` instead of the configuration's ``initializer_range``."""
    model: dict[str, Any] = field(default_factory=dict)
    """Overrides of the preset's configuration."""

    def __post_init__(self) -> None:
        where = "the recipe"
        if not self.stage:
            raise ValueError(f"{where} has no [[stage]]: nothing to train")
        names = [stage.name for stage in self.stage]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f'{where} has two stages "{twice}", which would share a folder')
        for number, stage in enumerate(self.stage):
            for name in (*filter(None, [stage.start]), *stage.merge):
                if name not in names[:number]:
                    raise ValueError(f'stage "{stage.name}": it begins with "{name}", which is no earlier stage')
        _one_of(where, "preset", self.preset, tuple(PRESETS))
        _within(where, self, 0, math.inf, "mtp_loss_weight")
        super().__post_init__()

    @classmethod
    def load(cls, path: Path, changes: Sequence[str] = ()) -> Recipe:
        """Reads a TOML recipe.

        Args:
            changes: ``FIELD=VALUE`` each, in place of what the file says: ``seed=7``, ``model.num_hidden_layers=4``, or
                of the stage of that name ``pretrain.steps=100``. Values are TOML's; text needs no quotes.

        Raises:
            ValueError: no such file, no ordinary one, not TOML, an unknown or a missing field, a wrong type, a value
                without sense.
        """
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist, or is no ordinary file: give the path of a recipe such as recipes/nano.toml."
            )
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
            stages = values.pop("stage", [])
            if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
                raise ValueError("stage must be written as [[stage]], once for each")
            for change in changes:
                _change(values, stages, change)
            made = [_built(Stage, values, f"stage {number}") for number, values in enumerate(stages, 1)]
            return _built(cls, {**values, "stage": made}, "the recipe")
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
        except ValueError as error:  # TOML's and UTF-8's errors are ValueErrors
            named = f"{path} with {', '.join(changes)}" if changes else str(path)
            raise ValueError(f"{named} is not a valid recipe: {str(error).rstrip('.')}.") from None

    def config(self, stage: Stage | None = None) -> AXK1Config:
        """The model's configuration while it is trained: at the beginning, or in ``stage``.

        Raises:
            ValueError: an unknown field, or values that contradict each other.
        """
        training = {
            "router_bias_update_rate": self.router_bias_update_rate,
            "mtp_loss_weight": self.mtp_loss_weight,
        }
        unknown = next((name for name in self.model if not hasattr(AXK1Config.preset(self.preset), name)), None)
        if unknown is not None:
            known = tuple(AXK1Config.preset(self.preset).to_dict())
            raise ValueError(f"The recipe's model.{unknown} is no field{_closest(unknown, known)}.")
        config = AXK1Config.preset(self.preset, **{**training, **self.model})
        changes = self._changes(stage, config) if stage is not None else {}
        try:
            return AXK1Config.preset(self.preset, **{**training, **self.model, **changes}) if changes else config
        except ValueError as error:
            raise ValueError(f'stage "{stage.name if stage else ""}": {error}') from None

    def at(self, stage: Stage) -> Recipe:
        """The recipe with the rows of ``stage``."""
        rows = {"row_tokens": stage.row_tokens, "batch_rows": stage.batch_rows}
        return replace(self, **{name: value for name, value in rows.items() if value})

    def begins_with(self, stage: Stage) -> list[Stage]:
        """The stages whose weights ``stage`` begins with: none, one, or those that it merges."""
        place = self.stage.index(stage)
        names = list(stage.merge) or [stage.start or (self.stage[place - 1].name if place else "")]
        return [each for each in self.stage if each.name in names]

    def _changes(self, stage: Stage, first: AXK1Config) -> dict[str, Any]:
        """What ``stage`` and the stages that it goes back to change of the configuration ``first``.

        Raises:
            ValueError: it merges stages of several configurations.
        """
        origins = [self._changes(origin, first) for origin in self.begins_with(stage)]
        if any(other != origins[0] for other in origins[1:]):
            names = " and ".join(f'"{name}"' for name in stage.merge)
            raise ValueError(f'stage "{stage.name}" merges {names}, whose lengths or rotary settings differ.')
        before = origins[0] if origins else {}
        return {**before, **stage.changes(before.get("rope_parameters", first.rope_parameters))}


def check_recipe(recipe: Recipe, tokenizer: Any) -> None:
    """What only files can tell, for all stages: whether model, tokenizer and corpus fit together.

    Raises:
        ValueError: they do not, in one sentence.
    """
    config = recipe.config()
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer {recipe.tokenizer} has {len(tokenizer):,} entries, the model {config.vocab_size:,} "
            "(vocab_size): train a smaller tokenizer, or set vocab_size under [model]."
        )
    if tokenizer.pad_token_id is None or not tokenizer.chat_template:
        raise ValueError(
            f"The tokenizer {recipe.tokenizer} has no padding token or no chat template; see docs/tokenizer.md."
        )
    if recipe.tensorboard:
        check_board()
    for stage in recipe.stage:
        check_stage(recipe, stage)


def check_stage(recipe: Recipe, stage: Stage) -> None:
    """What only files can tell of one stage.

    Raises:
        ValueError: its data are missing or do not fit the model, in one sentence.
    """
    config, here = recipe.config(stage), recipe.at(stage)
    positions = config.max_position_embeddings
    if here.row_tokens > positions:
        raise ValueError(
            f'stage "{stage.name}": row_tokens = {here.row_tokens} is more than the model\'s {positions} '
            "positions: lower it, or set rope_parameters or max_position_embeddings of the stage."
        )
    if here.batch_rows % processes():
        raise ValueError(
            f'stage "{stage.name}": batch_rows = {here.batch_rows} cannot be shared out among {processes()} '
            "processes: give a multiple of their number."
        )
    if stage.learn == "mtp" and not config.num_nextn_predict_layers:
        raise ValueError(f'stage "{stage.name}" trains MTP modules, and the model has none.')
    for name, source in stage.sources().items():
        try:
            check_source(name, source)
        except ValueError as error:
            raise ValueError(f'stage "{stage.name}": {error}') from None
    missing = [part for part in PARTS if stage.text and not (Path(recipe.corpus) / f"{part}.jsonl").is_file()]
    if missing:
        raise ValueError(
            f'stage "{stage.name}" takes text from {Path(recipe.corpus) / missing[0]}.jsonl, which is missing: run '
            f"axk1 corpus build {recipe.corpus}."
        )


def processes() -> int:
    """How many train together: as many as torchrun has started, else one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes what all have made."""
    return os.environ.get("RANK", "0") == "0"


def _source(where: str, given: Any) -> Source:
    """A source of a stage's ``data``: a share, or a table."""
    if isinstance(given, dict):
        try:
            return _built(Source, given, where)
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
        raise ValueError(f"{where} = {given!r} must be a share from 0 to 1, or a table with one")
    return Source(given)


def _change(values: dict[str, Any], stages: list[dict[str, Any]], change: str) -> None:
    """Puts the value of ``FIELD=VALUE`` where the field is, among ``values`` or those of a stage."""
    field_name, equals, text = change.partition("=")
    *tables, name = field_name.strip().split(".")
    if not equals or not name:
        raise ValueError(f"{change} must be FIELD=VALUE, such as seed=7, or STAGE.FIELD=VALUE")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    place = values
    if tables and (stage := next((each for each in stages if each.get("name") == tables[0]), None)) is not None:
        place, tables = stage, tables[1:]
    elif tables and tables[0] not in values and tables[0] != "model":
        known = (*(str(each.get("name")) for each in stages), "model")
        raise ValueError(f"{field_name}: there is no stage {tables[0]}{_closest(tables[0], known)}")
    for table in tables:
        place = place.setdefault(table, {})
        if not isinstance(place, dict):
            raise ValueError(f"{field_name}: {table} is no table")
    place[name] = value


def _built(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """``cls(**values)`` after a look at names and types, which Python would not check or would explain in its terms."""
    known = {entry.name: entry for entry in fields(cls)}
    where = f'stage "{values["name"]}"' if cls is Stage and isinstance(values.get("name"), str) else where
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{where}: {name} is no field{_closest(name, tuple(known))}")
        _check_type(where, name, value, str(known[name].type))
    for name, entry in known.items():
        if name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{where}: {name} is missing and required")
    return cls(**values)


def _check_type(where: str, name: str, value: Any, type_name: str) -> None:
    kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}
    if type_name.startswith("dict"):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: {name} = {value!r} must be a table, [{name}] and its entries below")
    elif type_name in kinds and (
        not isinstance(value, kinds[type_name]) or (isinstance(value, bool) and type_name != "bool")
    ):
        raise ValueError(f"{where}: {name} = {value!r} must be {_WORDS[type_name]}")


def _closest(name: str, known: tuple[str, ...]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f"; the nearest is {found[0]}" if found else f"; there are {', '.join(known)}"


def _one_of(where: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        words = " or ".join(f'"{choice}"' for choice in choices) if len(choices) < 3 else ", ".join(choices)
        raise ValueError(f'{name} = "{value}" in {where}: it must be {"" if len(choices) < 3 else "one of "}{words}')


def _within(where: str, holder: Any, low: float, high: float, *names: str) -> None:
    for name in names:
        value = getattr(holder, name)
        if not (low <= value <= high and math.isfinite(value)):
            bounds = f"from {low} to {high}" if high != math.inf else f"at least {low}"
            raise ValueError(f"{where}: {name} = {value} must be {bounds}")
