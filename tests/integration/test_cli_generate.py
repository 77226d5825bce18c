"""`axk1 generate`: one prompt, standard input, JSONL files that resume, errors in a sentence."""

import io
import json
import signal
import subprocess
import sys
import time

import pytest

from axk1.cli.main import main


@pytest.fixture
def generate(endless_checkpoint, monkeypatch, capsys):
    """Runs `axk1 generate MODEL ...`; gives exit code, standard output and standard error."""

    def run(*options: object, model: object = endless_checkpoint, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["axk1", "generate", str(model), *map(str, options)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def requests(tmp_path):
    file = tmp_path / "in.jsonl"
    lines = [
        {"prompt": "one"},
        {"id": "two", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "two\u2028"}]},
        {"prompt": "three", "think": True},
        {"prompt": "four", "think": False, "id": 40},
        {"prompt": "five"},
    ]
    file.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    return file


def replies(file) -> list[dict]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_answer_on_stdout_reasoning_on_stderr(generate):
    assert generate("hi") == (0, "Ys,42é\n", "")
    code, out, err = generate("hi", "--think", "--budget", 5)
    assert (code, out) == (0, "Ys,42é\n")
    assert err.strip() == "abc a"


def test_standard_input_is_the_prompt(generate):
    for options in (["-"], []):
        _, out, _ = generate(*options, "--json", stdin="hi\n")
        assert json.loads(out)["prompt_tokens"] == json.loads(generate("hi", "--json")[1])["prompt_tokens"]


def test_json(generate):
    _, out, _ = generate("hi", "--json", "--think", "--budget", 5, "--stop", ",4")
    reply = json.loads(out)
    assert (reply["reasoning"], reply["answer"], reply["reasoning_tokens"]) == ("abc a", "Ys", 5)
    assert reply["finish_reason"] == "stop"


def test_json_reports_drafts_and_log_probabilities(generate):
    """The scripted model's drafts are all right."""
    options = ["hi", "--json", "--think", "--budget", 20, "--logprobs", 2]
    with_drafts, without = (json.loads(generate(*options, "--drafts", n)[1]) for n in (3, 0))
    drafts, none = with_drafts.pop("drafts"), without.pop("drafts")
    assert drafts["accepted"] == drafts["drafted"] > 0 == none["drafted"]
    assert drafts["acceptance_at"] == [1.0, 1.0, 1.0] and drafts["steps"] < none["steps"]
    assert drafts["tokens_per_second"]["with"] > 0 and none["tokens_per_second"]["with"] is None
    assert "".join(token["token"] for token in with_drafts["logprobs"][:5]) == with_drafts["reasoning"][:5]
    assert all(token["top"][0]["logprob"] >= token["top"][1]["logprob"] for token in with_drafts["logprobs"])
    for reply in (with_drafts, without):
        for token in reply.pop("logprobs"):
            assert token["top"] or token["logprob"] <= 0
        del reply["seconds"]
    assert with_drafts == without


def test_penalties_and_biases(generate):
    """Each keeps the model from what it would write: Y again, or at all."""
    assert json.loads(generate("hi", "--json", "--logit-bias", "89=-100", "--temperature", 0)[1])["answer"][:1] != "Y"
    (plain, _), (penalised, _) = (
        (generate("hi", "--think", "--max-new-tokens", 12, "--temperature", 0, "--json", *more)[1], 0)
        for more in ([], ["--presence-penalty", 50, "--frequency-penalty", 1])
    )
    assert json.loads(plain)["reasoning"] == "abc abc abc "
    assert len(set(token := json.loads(penalised)["reasoning"])) == len(token)


def test_log_probabilities_in_a_file(generate, requests, tmp_path):
    output = tmp_path / "out.jsonl"
    assert generate("--input", requests, "--output", output, "--budget", 3, "--logprobs", 1)[0] == 0
    assert all(len(row["logprobs"]) >= row["answer_tokens"] for row in replies(output))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_seed_gives_the_same_file_whatever_the_batch(generate, requests, tmp_path, tiny_checkpoint, batch_size):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    options = ("--input", requests, "--max-new-tokens", 8, "--seed", 3, "--temperature", 2)
    for file, size in zip(files, (batch_size, 3), strict=True):
        generate(*options, "--output", file, "--batch-size", size, model=tiny_checkpoint)
    assert replies(files[0]) == replies(files[1])


def test_reply_cut_inside_the_reasoning_says_so(generate):
    code, out, err = generate("hi", "--think", "--max-new-tokens", 5)
    assert (code, out) == (4, "\n")
    assert "ended inside the reasoning" in err
    code, out, err = generate("hi", "--think", "--max-new-tokens", 5, "--json")
    assert code == 4 and json.loads(out)["closed"] is False and "ended inside the reasoning" in err


def test_a_file_with_a_reply_cut_inside_the_reasoning_says_so(generate, requests, tmp_path):
    output = tmp_path / "out.jsonl"
    for _ in range(2):  # finished already, it is no less true
        code, _, err = generate("--input", requests, "--output", output, "--max-new-tokens", 5)
        assert code == 4 and "1 of 5 replies ended inside the reasoning" in err


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_file_of_requests(generate, requests, tmp_path, batch_size):
    output = tmp_path / "out.jsonl"
    code, out, err = generate("--input", requests, "--output", output, "--budget", 3, "--batch-size", batch_size)
    assert (code, out) == (0, "")
    assert "5/5" in err
    rows = replies(output)
    assert [(row["id"], row["think"]) for row in rows] == [
        (0, False),
        ("two", False),
        (2, True),
        (40, False),
        (4, False),
    ]
    assert [row["reasoning"] for row in rows] == ["", "", "abc", "", ""]
    assert {row["answer"] for row in rows} == {"Ys,42é"}


def test_interrupted_run_goes_on(generate, requests, tmp_path, tiny_checkpoint):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    options = ("--input", requests, "--max-new-tokens", 8, "--seed", 3, "--batch-size", 2, "--temperature", 2)
    generate(*options, "--output", whole, model=tiny_checkpoint)
    lines = whole.read_bytes().splitlines(keepends=True)
    for kept, torn in ((0, 20), (2, 20), (2, 3), (4, 0), (5, 0)):
        output.write_bytes(b"".join(lines[:kept]) + (lines[kept][:torn] if torn else b""))
        code, _, err = generate(*options, "--output", output, model=tiny_checkpoint)
        assert (code, "5/5" in err) == (4, True)  # one is cut inside its reasoning
        assert output.read_bytes().splitlines(keepends=True)[:kept] == lines[:kept]  # not made again
        assert replies(output) == replies(whole)
    assert len({row["answer"] for row in replies(whole)}) > 1


def test_ctrl_c_keeps_what_is_finished(generate, tmp_path, endless_checkpoint):
    """The first request ends at once, the second never does."""
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b", "think": true}\n')
    options = ["--input", str(file), "--output", str(output), "--batch-size", "1"]
    command = [sys.executable, "-c", "from axk1.cli.main import main; main()", "generate", str(endless_checkpoint)]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as program:
        deadline = time.monotonic() + 90
        while not (output.exists() and output.read_bytes().endswith(b"\n")):
            assert time.monotonic() < deadline and program.poll() is None
            time.sleep(0.05)
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=60)
    assert program.returncode == 130
    assert "Traceback" not in err
    assert [row["id"] for row in replies(output)] == [0]
    assert generate(*options, "--budget", 3)[0] == 0
    assert [(row["id"], row["reasoning"]) for row in replies(output)] == [(0, ""), (1, "abc")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3"),
        ("[]", "either 'prompt' or 'messages'"),
        ('{"prompt": "a", "messages": []}', "either 'prompt' or 'messages'"),
        ('{"prompt": 3}', "'prompt' must be text"),
        ('{"messages": []}', "no messages"),
        ('{"messages": "hi"}', "no messages"),
        ('{"messages": [{"role": "boss", "content": ""}]}', "role is one of"),
        ('{"prompt": "a", "think": 1}', "'think' must be"),
        ('{"prompt": "a", "id": [1]}', "'id' must be"),
        ('{"prompt": "a", "id": 0}', "used in line 1 already"),
        ('{"prompt": "a", "temperature": "warm"}', "temperature is 'warm'"),
        ('{"prompt": "a", "top_p": NaN}', "top_p is nan"),
        ('{"prompt": "a", "logit_bias": {"x": 1}}', "logit_bias is"),
        ('{"prompt": "a", "budget": -2}', "'budget' is -2"),
        ('{"prompt": "a", "max_tokens": 1.5}', "'max_new_tokens' is 1.5"),
        ('{"prompt": "a", "max_tokens": 1, "max_new_tokens": 2}', "another name of it differ"),
        ('{"prompt": "a", "think": true, "enable_thinking": false}', "another name of it differ"),
        ('{"prompt": "a", "enable_thinking": "false"}', "'think' must be"),
        ('{"prompt": "a", "stop": 5}', "stop must be text"),
        ('{"prompt": "a", "tools": ["add"]}', "A tool must be"),
        ('{"messages": [{"role": "user", "content": "a", "thinking": 1}]}', "'thinking'"),
        ("[" * 100000, "line 3"),
    ],
)
def test_bad_request_names_its_line_and_nothing_is_written(generate, tmp_path, line, message):
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(f'{{"prompt": "fine"}}\n\n{line}\n')
    code, _, err = generate("--input", file, "--output", output)
    flat = " ".join(err.split())
    assert code == 2
    assert "line 3" in flat.lower()
    assert message in flat
    assert "Traceback" not in err
    assert not output.exists()


def test_a_request_that_is_too_long_does_not_stop_the_others(generate, tmp_path):
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(json.dumps({"prompt": "x" * 5000}) + '\n{"prompt": "b"}\n')
    for _ in range(2):  # and again: it is finished
        code, _, err = generate("--input", file, "--output", output)
        assert code == 3 and "1 of 2 requests could not be answered" in " ".join(err.split())
        bad, good = replies(output)
        assert "context holds 4096" in bad["error"] and (bad["id"], "answer" in bad) == (0, False)
        assert good["answer"] == "Ys,42é"


def test_lines_may_have_options_of_their_own(generate, tmp_path):
    """The known ones are honoured under all their names, the others are named."""
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        {"prompt": "a", "enable_thinking": True, "thinking_budget": 3},
        {"prompt": "b", "max_tokens": 2, "topic": "x", "temperature": 0.0},
        {"prompt": "c", "stop": ",4", "level": 5, "seed": 7},
        {"prompt": "d", "logit_bias": {"89": -100}, "temperature": 0},
        {"prompt": "e", "think": None, "max_new_tokens": None},
    ]
    file.write_text("\ufeff" + "\n\r\n\ufeff".join(map(json.dumps, lines)), encoding="utf-8")
    code, _, err = generate("--input", file, "--output", output)
    assert code == 0 and "from line 3 on: topic, level" in " ".join(err.split())
    a, b, c, d, e = replies(output)
    assert (a["think"], a["reasoning"]) == (True, "abc")
    assert (b["answer"], c["answer"], e["answer"]) == ("Ys", "Ys", "Ys,42é")
    assert not d["answer"].startswith("Y")


@pytest.mark.parametrize("change", ["question", "options", "model", "ids", "line"])
def test_an_output_of_other_requests_is_not_taken_for_this_ones(generate, tmp_path, change, closing_checkpoint):
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    options = ["--input", file, "--output", output, "--temperature", 0]
    assert generate(*options)[0] == 0
    before, how = output.read_bytes(), {}
    if change == "question":
        file.write_text('{"prompt": "a"}\n{"prompt": "c"}\n')
    if change == "ids":
        file.write_text('{"prompt": "b", "id": 0}\n{"prompt": "a", "id": 1}\n')
    if change == "line":
        file.write_text('{"prompt": "a"}\n{"prompt": "b", "max_tokens": 3}\n')
    if change == "options":
        options += ["--think"]
    if change == "model":
        how = {"model": closing_checkpoint}
    code, _, err = generate(*options, **how)
    assert code == 2 and "for another request" in " ".join(err.split())
    assert output.read_bytes() == before
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    if change == "question":
        assert generate(*options, "--batch-size", 1, "--drafts", 0)[0] == 0  # these change none
        assert output.read_bytes().startswith(before) and len(replies(output)) == 3


def test_two_runs_do_not_share_an_output(generate, requests, tmp_path):
    import fcntl

    output = tmp_path / "out.jsonl"
    with output.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, _, err = generate("--input", requests, "--output", output)
    assert code == 2 and "Another run is writing" in " ".join(err.split())


@pytest.mark.parametrize("content", [b"precious notes", b'{"id": 0}\nprecious notes\n{"id": 1', b'{"text": 1}\n'])
def test_foreign_output_file_is_left_alone(generate, requests, tmp_path, content):
    output = tmp_path / "out.jsonl"
    output.write_bytes(content)
    code, _, err = generate("--input", requests, "--output", output)
    assert code == 2
    assert "not a reply of an earlier run" in " ".join(err.split())
    assert output.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["hi", "--top-p", "2"], "top_p is 2.0"),
        (["hi", "--budget", "-3"], "budget is -3"),
        (["hi", "--think", "--budget", "9", "--max-new-tokens", "9"], "leaves no room"),
        (["hi", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["hi", "--device", "abacus"], "abacus"),
        (["   "], "prompt is empty"),
        (["hi", "--output", "x"], "--output needs --input"),
        (["--input", "x"], "--input needs --output"),
        (["hi", "--input", "x", "--output", "y"], "leave out the prompt"),
        (["--input", "/none/x", "--output", "y"], "cannot be read"),
        (["hi", "--temperature", "warm"], "--temperature"),
        (["hi", "--drafts", "some"], "--drafts is 'some'"),
        (["hi", "--drafts", "16"], "drafts is 16"),
        (["hi", "--drafts", "-1"], "--drafts is '-1'"),
        (["hi", "--logit-bias", "7"], "--logit-bias is '7'"),
        (["hi", "--logit-bias", "-7=1"], "logit_bias is"),
        (["hi", "--presence-penalty", "nan"], "presence_penalty is nan"),
        (["hi", "--logprobs", "1"], "--logprobs needs --json"),
        (["hi", "--json", "--logprobs", "-1"], "logprobs is -1"),
    ],
)
def test_bad_options(generate, options, message):
    code, out, err = generate(*options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_input_as_output_is_refused(generate, requests):
    before = requests.read_bytes()
    code, _, err = generate("--input", requests, "--output", requests)
    assert code == 2
    assert "choose another" in err
    assert requests.read_bytes() == before


def test_wrong_model_path(generate, tmp_path):
    code, _, err = generate("hi", model=tmp_path / "none")
    assert code == 2
    assert "no checkpoint at" in " ".join(err.split())
    assert "Traceback" not in err
