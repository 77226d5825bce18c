"""Examples from files, and Mode-Overlap data."""

import json
from pathlib import Path

import pytest
from scripted import make_model, make_tokenizer
from typer.testing import CliRunner

from axk1.chat import Chat, Reply
from axk1.cli.main import app
from axk1.tasks import Problem, generate
from axk1.train.data import reply_example
from axk1.train.overlap import write_overlap
from axk1.train.packing import packed_whole, save_rows
from axk1.train.sources import endless_examples, source_examples


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def write(path: Path, *lines: object) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: str) -> dict[str, str]:
    return {"role": "assistant", "content": text, **more}


def learned(tokenizer, example) -> str:
    return tokenizer.decode([i for i, known in zip(example.input_ids, example.learned, strict=True) if known])


def test_texts_and_conversations(tokenizer, tmp_path: Path) -> None:
    """A text is learned whole, in pieces; of a conversation the last reply, in the mode that it has."""
    lines = [
        {"text": "abcdef", "source": "x"},
        {"messages": [user("1?"), assistant("one")]},
        "",
        {"messages": [user("1?"), assistant("one"), user("2?"), assistant("two", reasoning_content="one more")]},
        {"messages": [user("long " * 60), assistant("left out")]},
    ]
    found = list(source_examples(write(tmp_path / "a.jsonl", *lines), tokenizer, 120))
    assert [learned(tokenizer, e) for e in found] == [
        "abcdef<|endoftext|>",
        "one<|im_end|>",
        "one more</think>two<|im_end|>",
    ]
    prompts = [tokenizer.decode(e.input_ids) for e in found[1:]]
    assert "</think>one" in prompts[0] and prompts[1].count("<think>") >= 1
    pieces = list(source_examples(str(tmp_path / "a.jsonl"), tokenizer, 4))[:2]
    assert [len(piece.input_ids) for piece in pieces] == [4, 3]
    (tmp_path / "b.txt").write_text("plain text")
    assert [learned(tokenizer, e) for e in source_examples(str(tmp_path / "b.txt"), tokenizer, 50)] == [
        "plain text<|endoftext|>"
    ]


def test_a_reply_is_what_the_model_would_write(tokenizer) -> None:
    """The prompt is the chat's own, and a marker inside of a text stays text."""
    chat = Chat(make_model(), tokenizer)
    example = reply_example(tokenizer, [user("1?")], True, "a <|im_end|> b", "c")
    prompt = chat.prompt([user("1?")], think=True)
    assert example.input_ids[: len(prompt)] == prompt and not any(example.learned[: len(prompt)])
    reply = example.input_ids[len(prompt) :]
    assert reply.count(269) == 1 and reply[-1] == 269, "one real end of the turn"
    assert tokenizer.decode(reply) == "a <|im_end|> b</think>c<|im_end|>"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a.jsonl, line 2: .*Mend or remove"),
        ("[1]", "line 2: is no JSON object"),
        ({"prompt": "x"}, "line 2: give either 'text' or 'messages'"),
        ({"text": 1}, "line 2: 'text' must be text"),
        ({"messages": [user("x")]}, "line 2: 'messages' must be a list of a question at least and a reply"),
        ({"messages": [user("x"), user("y")]}, "line 2: the last of 'messages' must be the assistant's"),
        (
            {"messages": [user("x"), assistant("y", reasoning_content="z")], "think": False},
            "line 2: 'think' must be true or false",
        ),
    ],
)
def test_a_wrong_line_is_named(tokenizer, tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(source_examples(write(tmp_path / "a.jsonl", {"text": "fine"}, line), tokenizer, 50))


def test_files_that_hold_nothing(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.jsonl is missing, or no ordinary file"):
        list(source_examples(str(tmp_path / "none.jsonl"), tokenizer, 50))
    with pytest.raises(ValueError, match="holds no example of at most 50 tokens"):
        list(source_examples(write(tmp_path / "a.jsonl", ""), tokenizer, 50))
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(ValueError, match=r"b.jsonl, line 1: is not UTF-8 text: .* at byte 10 of the line"):
        list(source_examples(str(tmp_path / "b.jsonl"), tokenizer, 50))


def test_examples_go_round_in_another_order(tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"text": f"text {n}"} for n in range(9)))

    def rounds(seed: int) -> list[list[str]]:
        stream = endless_examples(path, tokenizer, 50, seed)
        return [[learned(tokenizer, next(stream)) for _ in range(9)] for _ in range(2)]

    first, second = rounds(0)
    assert sorted(first) == sorted(second) and first != second
    assert rounds(0) == [first, second] and rounds(1)[0] != first


class Solver:
    """Answers right in Think always, in Non-Think from its second attempt on; one problem never, one in no mode."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = {problem.question: problem for problem in problems}
        self.never, self.unruly = problems[0].question, problems[1].question
        self.asked: list[tuple[bool, int]] = []

    def reply_batch(self, conversations, think, seeds, **options) -> list[Reply]:
        attempt = sum(mode == think for mode, _ in self.asked)
        self.asked.append((think, len(conversations)))
        assert len(set(seeds)) == len(conversations)
        return [self.reply(conversation[0]["content"], think, attempt) for conversation in conversations]

    def reply(self, question: str, think: bool, attempt: int) -> Reply:
        right = question != self.never and (think or attempt > 0)
        answer = self.problems[question].answer if right else "no"
        reasoning = "so" if think or question == self.unruly else ""
        return Reply(reasoning, answer, [], "stop", True, 1, 1, 1, 0.0)


def test_overlap_is_what_both_modes_solve(tokenizer, tmp_path: Path) -> None:
    problems = [problem for _, problem in zip(range(12), generate("train", 3), strict=False)]
    solver, said = Solver(problems), []
    found = write_overlap(
        solver,  # pyright: ignore[reportArgumentType]
        problems,
        tmp_path / "overlap.jsonl",
        samples=3,
        progress=lambda done, total: said.append((done, total)),
    )
    assert found == (12, 11, 10, 10)
    assert solver.asked == [(True, 12), (False, 12), (True, 1), (False, 12), (True, 1), (False, 2)]
    assert said[-1] == (40, 72)
    lines = [json.loads(line) for line in (tmp_path / "overlap.jsonl").read_text().splitlines()]
    assert [line["think"] for line in lines] == [True, False] * 10
    for think, plain in zip(lines[::2], lines[1::2], strict=True):
        assert think["messages"][0] == plain["messages"][0]
        assert think["messages"][1]["reasoning_content"] == "so" and "reasoning_content" not in plain["messages"][1]
    assert len(list(source_examples(str(tmp_path / "overlap.jsonl"), tokenizer, 4096))) == 20


def test_inspect_shows_documents_and_what_is_learned(tokenizer, tmp_path: Path) -> None:
    """Of a file, and the same of the packed rows that a run keeps; padding is a document that nobody learns."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    lines = [{"text": "abc"}, {"messages": [user("1?"), assistant("one")]}]
    path = write(tmp_path / "a.jsonl", *lines)
    save_rows(tmp_path / "data.npy", packed_whole(source_examples(path, tokenizer, 200), 200, tokenizer.pad_token_id))
    options = ["--tokenizer", str(tmp_path / "tokenizer"), "--row-tokens", "200"]
    shown = [CliRunner().invoke(app, ["data", "inspect", str(f), *options]) for f in (path, tmp_path / "data.npy")]
    assert shown[0].exit_code == 0, shown[0].output
    assert shown[0].output == shown[1].output
    assert "row 0 of 1: 3 documents, 7 of 200 tokens learned" in shown[0].output
    assert "from 0, 3 of 4" in shown[0].output and "abc<|endoftext|>" in shown[0].output
    found = json.loads(CliRunner().invoke(app, ["data", "inspect", str(path), *options, "--json"]).output)
    (text, talk, padding) = found[0]
    assert text["parts"] == [[True, "abc<|endoftext|>"]] and (text["tokens"], text["learned"]) == (4, 3)
    assert [part[0] for part in talk["parts"]] == [False, True] and talk["parts"][1][1] == "one<|im_end|>"
    assert talk["learned"] == 4 and padding["learned"] == 0
    late = CliRunner().invoke(app, ["data", "inspect", str(path), *options, "--first", "1"])
    assert late.exit_code == 2 and "has 1 rows" in late.output + str(late.exception)
