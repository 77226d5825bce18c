"""One loader: no code of a checkpoint runs, nothing is asked or fetched, and names of the hub lead to its cache."""

import os
import re
import shutil
import socket
from pathlib import Path

import pytest
from checkpoints import edit_json
from typer.testing import CliRunner

import axk1.chat
from axk1.chat.prompt import prompt_ids
from axk1.checkpoint import CheckpointError, verify_checkpoint
from axk1.checkpoint.hub import HubId, hub_folder
from axk1.cli.main import app
from axk1.load import load, load_model, load_tokenizer, resolve_model_path

CODE = "from pathlib import Path\nPath({mark!r}).touch()\nclass C: ...\n"


@pytest.fixture
def checkpoint(endless_checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(endless_checkpoint, tmp_path / "model"))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def yes_on_stdin(monkeypatch):
    """Whoever asks is answered, so that a question does not pass for a refusal."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("something was asked on standard input"))


def with_code(folder: Path, file: str, **changes) -> Path:
    """Adds code, and makes ``file`` name it; returns what the code would leave."""
    mark = folder / "executed"
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    edit_json(folder / file, lambda values: values.update(changes))
    return mark


def test_an_unknown_model_with_code_is_refused_without_a_question(checkpoint, yes_on_stdin, no_network):
    names = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C"}
    mark = with_code(checkpoint, "config.json", model_type="new", auto_map=names)
    for read in (load, load_model, load_tokenizer, axk1.chat.load):
        with pytest.raises(CheckpointError, match=r"'new'.*auto_map names is never run"):
            read(checkpoint)
    assert not mark.exists()


@pytest.mark.parametrize("auto_map", [{"AutoTokenizer": ["code.C", None]}, ["code.C", None]])
def test_an_unknown_tokenizer_with_code_is_refused_without_a_question(checkpoint, yes_on_stdin, no_network, auto_map):
    mark = with_code(checkpoint, "tokenizer_config.json", tokenizer_class="NewTokenizer", auto_map=auto_map)
    for read in (load, load_tokenizer):
        with pytest.raises(CheckpointError, match=r"NewTokenizer.*never run"):
            read(checkpoint)
    assert not mark.exists()


def test_a_known_model_with_code_loads_without_it(checkpoint, yes_on_stdin, no_network):
    with_code(checkpoint, "config.json", auto_map={"AutoModelForCausalLM": "code.C"})
    mark = with_code(checkpoint, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "code.C"]})
    assert type(load(checkpoint).model) is axk1.AXK1ForCausalLM
    assert not mark.exists()


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
@pytest.mark.parametrize("name", ["kernels-community/flash-attn2", "flash_attention_2", {"": "a/b"}, 5])
def test_a_configuration_may_not_name_kernels_of_the_hub(checkpoint, no_network, key, name):
    edit_json(checkpoint / "config.json", lambda config: config.update({key: name}))
    for read in (load, load_model, axk1.AXK1ForCausalLM.from_pretrained, verify_checkpoint):
        with pytest.raises(CheckpointError, match=rf"{key} is .*compiled code from the hub"):
            read(checkpoint)


def test_the_built_in_implementations_may_be_named(checkpoint):
    edit_json(checkpoint / "config.json", lambda config: config.update(_attn_implementation="sdpa"))
    assert load_model(checkpoint).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_pipe_in_place_of_a_file_is_refused(checkpoint, name):
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    with pytest.raises(ValueError, match=rf"{name}: is no ordinary file|no checkpoint at"):
        load(checkpoint)
    if name == "config.json":
        with pytest.raises(CheckpointError, match="no ordinary file"):
            verify_checkpoint(checkpoint)


def test_an_endless_file_is_refused(checkpoint):
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="no ordinary file"):
        verify_checkpoint(checkpoint)


def test_files_have_a_largest_size(checkpoint, monkeypatch):
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}" + " " * 2**20)
    with pytest.raises(CheckpointError, match=r"chat_template.jinja: has more than 1,048,576 bytes"):
        load(checkpoint)
    (checkpoint / "chat_template.jinja").unlink()
    monkeypatch.setattr("axk1.checkpoint.reading.read_bytes.__defaults__", (10,))
    with pytest.raises(CheckpointError, match=r"config.json: has more than 10 bytes"):
        verify_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"model_type": "axk1", "vocab_size": 1' + "0" * 5000 + "}", "\ufeff{}"]
)
def test_absurd_json_is_one_sentence(checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    for read in (load, verify_checkpoint):
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read(checkpoint)


def test_a_damaged_tokenizer_is_one_sentence(checkpoint):
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"The tokenizer in .*model cannot be read"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda values: values["model"].update(continuing_subword_prefix="x"), "has a continuing_subword_prefix"),
        (lambda values: values.update(model=None), "The tokenizer in .* cannot be read"),
    ],
)
def test_a_tokenizer_that_would_end_the_process_is_refused(checkpoint, change, error):
    edit_json(checkpoint / "tokenizer.json", change)
    with pytest.raises(ValueError, match=error):
        load_tokenizer(checkpoint)


def test_a_tokenizer_of_other_types_is_one_sentence(checkpoint):
    edit_json(checkpoint / "tokenizer_config.json", lambda values: values.update(model_max_length="long"))
    with pytest.raises(ValueError, match=r"The tokenizer in .* cannot be read: '>' not supported"):
        load_tokenizer(checkpoint)


def test_a_pattern_that_takes_too_many_steps_is_one_sentence(checkpoint):
    """The library panics there, which no handler of errors sees."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    edit_json(checkpoint / "tokenizer.json", lambda values: values.update(pre_tokenizer=split))
    tokenizer = load_tokenizer(checkpoint)
    for text in ("a" * 30 + "b", "<think>" + "a" * 30 + "b"):
        with pytest.raises(ValueError, match=r"The tokenizer cannot read this text: .*retry-limit"):
            prompt_ids(tokenizer, [{"role": "user", "content": text}])
    (checkpoint / "text.txt").write_text("a" * 30 + "b")
    result = CliRunner().invoke(app, ["tokenizer", "report", str(checkpoint), "--corpus", str(checkpoint / "text.txt")])
    assert result.exit_code == 2 and "cannot read this text" in result.stderr


def test_another_architecture_is_refused_before_anything_is_allocated(checkpoint):
    """Of these weights, transformers would make a model of seven billion parameters."""
    (checkpoint / "config.json").write_text('{"model_type": "llama"}')
    for read in (load, load_model, axk1.chat.load):
        with pytest.raises(CheckpointError, match="this is another architecture's checkpoint"):
            read(checkpoint)


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", None])
def test_another_tools_quantisation_is_refused(checkpoint, method):
    """In the words of ``verify``; transformers asks for packages then, or loads the numbers as they are."""
    edit_json(checkpoint / "config.json", lambda values: values.update(quantization_config={"quant_method": method}))
    for read in (load, verify_checkpoint):
        with pytest.raises(CheckpointError, match=f"is quantised by {method!r}|the configuration is not usable"):
            read(checkpoint)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"eos_token_id": "x"}', '{"eos_token_id": [1, 2.5]}', '{"pad_token_id": {}}']
)
def test_what_generation_config_may_hold(checkpoint, text):
    """What loading cannot use, ``verify`` does not call sound."""
    (checkpoint / "generation_config.json").write_text(text)
    for read in (load, verify_checkpoint):
        with pytest.raises(CheckpointError, match=r"generation_config\.json"):
            read(checkpoint)


def test_a_missing_tokenizer_asks_nobody(tmp_path, no_network):
    with pytest.raises(CheckpointError, match="no folder"):
        load_tokenizer(tmp_path / "nowhere")


def cached(folder: Path, cache: Path, name: str = "models--some--model", revision: str = "main") -> Path:
    """Puts ``folder`` into a cache of the hub, as a download would; returns the snapshot."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = cache / name
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs").mkdir()
    (home / "refs" / revision).write_text(commit)
    for i, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, home / "blobs" / f"h{i}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"h{i}")
    return snapshot


@pytest.fixture
def offline_cache(tmp_path, monkeypatch, no_network) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_name_of_the_hub_loads_from_its_cache(endless_checkpoint, offline_cache):
    snapshot = cached(endless_checkpoint, offline_cache)
    assert resolve_model_path("some/model") == snapshot
    assert resolve_model_path(Path("some/model@main")) == snapshot
    assert resolve_model_path(f"some/model@{snapshot.name}") == snapshot
    assert load("some/model").model.config.vocab_size == load(endless_checkpoint).model.config.vocab_size


@pytest.mark.parametrize("name", ["skt/A.X-K1", "skt/A.X-K1@0123456"])
def test_offline_the_sentence_says_how_to_download(offline_cache, name):
    revision = " --revision 0123456" if "@" in name else ""
    with pytest.raises(ValueError, match=rf"{name} is no folder here.*hf download skt/A.X-K1{revision}`"):
        resolve_model_path(name)


def test_a_folder_goes_before_the_hub(checkpoint, monkeypatch, no_network):
    monkeypatch.chdir(checkpoint.parents[1])
    assert resolve_model_path(f"{checkpoint.parent.name}/model") == Path(checkpoint.parent.name, "model")


@pytest.mark.parametrize("text", ["/a/b", "./a", "../a/b", "a", "a/b/c", "a\\b/c", "~/a", "a/b@", "한/b"])
def test_paths_are_not_names_of_the_hub(text):
    assert HubId.parse(text) is None


class File:
    def __init__(self, file_size: int, will_download: bool = True) -> None:
        self.file_size, self.will_download = file_size, will_download


def test_room_is_checked_before_a_download(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    calls, said = [], []

    def snapshot_download(name, dry_run=False, **how):
        calls.append((name, dry_run, how["revision"]))
        return files if dry_run else str(tmp_path)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    files = [File(10**18), File(5, False)]
    with pytest.raises(ValueError, match=r"needs 1\.0 EB more in .*hub"):
        hub_folder(HubId("some", "v1"), say=said.append)
    assert calls == [("some", True, "v1")] and not said
    files = [File(10**6), File(10**18, False)]
    assert hub_folder(HubId("some", "v1"), say=said.append) == tmp_path
    assert calls[-1] == ("some", False, "v1") and "Downloading some@v1: 1.0 MB" in said[0]


def test_without_a_network_what_is_cached_is_used(endless_checkpoint, offline_cache, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import DryRunError

    known = huggingface_hub.snapshot_download

    def snapshot_download(*args, dry_run=False, **how):
        if dry_run:
            raise DryRunError("no connection")
        return known(*args, **how)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    snapshot = cached(endless_checkpoint, offline_cache)
    assert resolve_model_path("some/model") == snapshot
    with pytest.raises(ValueError, match=r"the hub cannot be reached. Where there is a network, run `hf download x/y`"):
        resolve_model_path("x/y")


@pytest.mark.parametrize(
    "command", ["generate", "verify", "info", "demo", "serve", "quantize", "convert", "bench", "eval"]
)
def test_every_command_reads_names_of_the_hub(endless_checkpoint, offline_cache, tmp_path, command):
    cached(endless_checkpoint, offline_cache)
    words = {
        "generate": ["hi", "--max-new-tokens", "2"],
        "serve": ["--engine", "vllm", "--dry-run", "--gpus", "1", "--gpu-memory", "80"],
        "quantize": [str(tmp_path / "new"), "--scheme", "int8"],
        "convert": [str(tmp_path / "new"), "--layout", "per-expert"],
    }.get(command, [])
    if command not in ("bench", "demo", "eval"):  # they take their time
        done = CliRunner().invoke(app, [command, "some/model", *words])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [command, "some/other", *words])
    assert done.exit_code == 2
    assert "run `hf download some/other`" in done.stderr and done.stderr.count("\n") == 1


def test_values_are_looked_at_on_request(checkpoint):
    from checkpoints import edit_tensors

    edit_tensors(checkpoint / "model.safetensors", lambda t: t["lm_head.weight"].view(-1)[:1].fill_(float("nan")))
    assert not load_model(checkpoint).lm_head.weight.isfinite().all()
    for read in (load, load_model):
        with pytest.raises(CheckpointError, match=r"lm_head.weight.*holds NaN"):
            read(checkpoint, check_values=True)


def test_the_loader_is_the_only_one():
    """Everything else in the package loads through it, or passes the same guards."""
    source = Path(axk1.__file__).parent
    places = {"load.py", "transformers_worker.py"}  # the second is transformers alone, in a process without axk1
    for path in source.rglob("*.py"):
        calls = re.findall(r"Auto\w+\.from_pretrained\(([^)]*\)?[^)]*)\)", path.read_text(encoding="utf-8"))
        assert not calls or path.name in places, path
        assert all("**_LOCAL" in call or "trust_remote_code=False" in call for call in calls), path
