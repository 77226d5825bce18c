"""The page in a real browser: what a person does with it."""

import json
import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import DESKTOP, PHONE, ask, bring, ended, needs_chromium, ready, stored, visiting
from playwright.sync_api import Browser, Page, expect
from serving import NANO, Running, serving

from axk1.engine.scripted import Pace, Script, ScriptedEngine
from axk1.serve.settings import Settings

pytestmark = needs_chromium
RICH = r"""A **bold** word, `code`, [a link](https://example.org/x) and \(a^2\).

\[ x = \frac{1}{2} \]

- one
- two

| left | right |
|---|---:|
| a | 1 |

```python
def double(number):
    return 2 * number
```
"""
CALLS = (
    'Let me see. <tool_call>\n{"name": "weather", "arguments": {"city": "서울", "tag": "</tool_call>"}}\n</tool_call>\n'
    '<tool_call>{"name": "<b>clock</b>"}</tool_call> <tool_call>no call</tool_call>'
)
SCRIPTS = [
    Script([CALLS], "look up"),
    Script([RICH], "rich", "First **this**,\nthen that."),
    Script(["Done."], "ponder", "and so on, " * 400),
    Script(["word " * 400], "long reply"),
    Script(["Hello there! 안녕하세요."], "", "Let me think."),
]


def engine(tokenizer, **pace) -> ScriptedEngine:
    return ScriptedEngine(tokenizer, SCRIPTS, Pace(**pace))


@pytest.fixture(scope="module")
def fast(tokenizer) -> Iterator[Running]:
    with serving(engine(tokenizer), tokenizer) as running:
        yield running


@pytest.fixture(scope="module")
def paced(tokenizer) -> Iterator[Running]:
    with serving(engine(tokenizer, token=0.01), tokenizer) as running:
        yield running


@pytest.fixture
def page(browser: Browser, fast: Running) -> Iterator[Page]:
    with visiting(browser, fast) as page:
        yield page


@pytest.fixture
def slowly(browser: Browser, paced: Running) -> Iterator[Page]:
    with visiting(browser, paced) as page:
        yield page


# What an answer looks like


def test_an_answer_with_reasoning_counts_and_seed(page):
    answer = ask(page, "Show me something rich", think=True)
    prose = answer.locator(".body > .prose")
    expect(prose.locator("strong")).to_have_text("bold")
    expect(prose.locator("a")).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(prose.locator("math")).to_have_count(2)
    expect(prose.locator("math mfrac")).to_have_count(1)
    expect(prose.locator("td.right")).to_have_text("1")
    expect(prose.locator(".code .hljs-keyword").first).to_have_text("def")
    thought = answer.locator("details")
    expect(thought.locator("summary")).to_contain_text("Thought for")
    expect(thought.locator(".prose")).not_to_be_visible()  # folded
    thought.locator("summary").click()
    expect(thought.locator(".prose strong")).to_have_text("this")
    node = stored(page, lambda file: file["conversations"][0]["nodes"][1])
    assert node["content"] == RICH and node["usage"]["reasoning"] > 0 and node["state"] == "done"
    facts = answer.locator(".facts")
    expect(facts).to_contain_text(f"{node['usage']['completion']} tokens")
    expect(facts).to_contain_text(f"Seed {node['seed']}")
    expect(facts).to_contain_text("prompt tokens cached")


def test_code_whose_language_comes_in_two_pieces_has_its_name_and_colours(page):
    ready(page)
    found = page.evaluate("""async () => {
      const { Prose } = await import("/page/prose.js");
      const frames = async () => { for (let i = 0; i < 5; i++) await new Promise(requestAnimationFrame); };
      const element = document.createElement("div");
      const prose = new Prose(element);
      for (const [text, done] of [["```p", false], ["```python\\ndef f(): pass\\n```", true]]) {
        prose.set(text, done);
        await frames();
      }
      return [".head span", ".hljs-keyword"].map((each) => element.querySelector(each)?.textContent);
    }""")
    assert found == ["python", "def"]


def test_calls_are_folded_under_their_names(page):
    answer = ask(page, "look up the weather")
    expect(answer.locator(".body > .prose")).to_have_text("Let me see. <tool_call>no call</tool_call>")
    calls = answer.locator(".calls details")
    expect(calls.locator("summary")).to_have_text(["Calls weather", "Calls <b>clock</b>"])
    expect(calls.first.locator(".arguments")).not_to_be_visible()
    calls.first.locator("summary").click()
    expect(calls.first.locator(".arguments")).to_have_text('{ "city": "서울", "tag": "</tool_call>" }')
    assert stored(page, lambda file: file["conversations"][0]["nodes"][1]["content"]) == CALLS


def test_a_call_is_shown_once_it_is_complete(slowly):
    answer = ask(slowly, "look up the weather", wait=False)
    expect(answer.locator(".body > .prose")).to_have_text("Let me see.")
    assert "tool" not in answer.inner_text().replace("</tool_call>", "")
    expect(answer.locator(".calls summary").first).to_have_text("Calls weather")
    ended(slowly)


def test_code_and_messages_are_copied(browser, fast):
    with visiting(browser, fast, permissions=["clipboard-read", "clipboard-write"]) as page:
        answer = ask(page, "rich")
        answer.locator(".code button").click()
        expect(answer.locator(".code button")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == "def double(number):\n    return 2 * number\n"
        answer.get_by_role("button", name="Copy this message").click()
        assert page.evaluate("navigator.clipboard.readText()") == RICH


def test_what_was_cached_is_told(page):
    ask(page, "tell me " * 80)
    answer = ask(page, "and again")
    cached = stored(page, lambda file: file["conversations"][0]["nodes"][-1]["usage"]["cached"])
    assert cached >= 64
    expect(answer.locator(".facts")).to_contain_text(f"{cached} of")


# Steering


def test_answer_now_ends_the_thinking(slowly):
    answer = ask(slowly, "ponder this", think=True, wait=False)
    expect(answer.locator("details.live summary")).to_contain_text("Thinking…")
    expect(answer.locator(".peek")).to_contain_text("and so on")
    slowly.get_by_role("button", name="Answer now").click()
    ended(slowly)
    expect(answer.locator(".body > .prose")).to_have_text("Done.")
    reasoning = stored(slowly, lambda file: file["conversations"][0]["nodes"][1]["reasoning"])
    assert 0 < reasoning.count("and so on") < 400


def test_a_budget_and_think_are_remembered(page):
    answer = ask(page, "ponder this", think=True)
    page.locator("#budget").select_option("128")
    ask(page, "ponder more", think=True)
    used = stored(page, lambda file: [node["usage"]["reasoning"] for node in file["conversations"][0]["nodes"][1::2]])
    assert used[0] > 800 and used[1] <= 128
    page.reload()
    expect(page.locator("#think")).to_have_attribute("aria-checked", "true")
    expect(page.locator("#budget")).to_have_value("128")
    expect(answer).to_contain_text("Done.")  # the conversation is there again


def test_stop_keeps_what_came_and_continue_brings_the_rest(slowly, paced):
    answer = ask(slowly, "a long reply", wait=False)
    expect(answer.locator(".body > .prose")).to_contain_text("word word")
    slowly.keyboard.press("Escape")
    expect(answer.locator(".notice")).to_contain_text("Stopped.")
    paced.wait_idle()
    before = answer.locator(".body > .prose").inner_text()
    assert 0 < before.count("word") < 400
    paced.service.engine.pace = Pace()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        answer.get_by_role("button", name="Continue").click()
        ended(slowly)
    finally:
        paced.service.engine.pace = Pace(token=0.01)  # pyright: ignore[reportAttributeAccessIssue]
    assert answer.locator(".body > .prose").inner_text().split() == ["word"] * 400


def test_settings_are_sent(page):
    asked = []
    page.on("request", lambda request: request.method == "POST" and asked.append(request.post_data_json))
    ready(page)
    page.locator("#settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.25")
    page.get_by_label("Top-p").fill("0.5")
    page.get_by_label("Longest answer").fill("3")
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Done").click()
    answer = ask(page, "hi")
    (body,) = asked
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["seed"]) == (0.25, 0.5, 3, 7)
    expect(answer.locator(".notice")).to_contain_text("greatest length")
    expect(answer.locator(".facts")).to_contain_text("Seed 7")


# Both sides can be changed, and nothing is lost


def test_edit_regenerate_and_versions(page):
    ask(page, "rich")
    question = page.locator("article.user")
    question.get_by_role("button", name="Edit").click()
    question.get_by_role("textbox").fill("hi instead")
    question.get_by_role("button", name="Save and send").click()
    ended(page)
    answer = page.locator("article.assistant")
    expect(answer.locator(".body > .prose")).to_have_text("Hello there! 안녕하세요.")
    answer.get_by_role("button", name="Answer again").click()
    ended(page)
    expect(answer.locator(".versions")).to_have_text("2/2")
    answer.get_by_role("button", name="Edit").click()
    answer.get_by_role("textbox").fill("I say **this**.")
    answer.get_by_role("button", name="Save").click()
    expect(answer.locator("strong")).to_have_text("this")
    answer.get_by_role("button", name="Earlier version").click()
    expect(answer.locator(".body > .prose")).to_have_text("Hello there! 안녕하세요.")
    answer.get_by_role("button", name="Later version").click()
    ask(page, "and now?")
    nodes = stored(page, lambda file: file["conversations"][0]["nodes"])
    assert [node["content"] for node in nodes if node["role"] == "user"] == ["rich", "hi instead", "and now?"]
    page.reload()
    expect(page.locator("article.assistant strong").first).to_have_text("this")
    page.locator("article.user").first.get_by_role("button", name="Earlier version").click()
    expect(page.locator("article.assistant .code")).to_have_count(1)


def test_an_edited_answer_is_what_the_model_reads(page):
    answer = ask(page, "hi")
    answer.get_by_role("button", name="Edit").click()
    answer.get_by_role("textbox").fill("changed")
    answer.get_by_role("button", name="Save").click()
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "go on")
    assert asked.value.post_data_json["messages"][1]["content"] == "changed"


# Conversations


def test_rename_search_delete_and_undo(page):
    ask(page, "about apples")
    page.locator("#new").click()
    ask(page, "about pears")
    items = page.locator("#list a")
    expect(items).to_have_text(["about pears", "about apples"])
    items.last.hover()
    page.get_by_role("button", name="Rename “about apples”").click()
    page.get_by_role("textbox", name="New title").fill("Fruit")
    page.keyboard.press("Enter")
    expect(items).to_have_text(["Fruit", "about pears"])
    page.keyboard.press("Control+k")
    page.keyboard.type("PEARS")
    expect(items).to_have_text(["about pears"])
    page.locator("#search").fill("")
    items.last.hover()
    page.get_by_role("button", name="Delete “about pears”").click()
    expect(items).to_have_text(["Fruit"])
    page.get_by_role("button", name="Undo").click()
    expect(items).to_have_text(["about pears", "Fruit"])
    items.last.click()
    expect(page.locator(".bubble")).to_have_text("about apples")
    page.go_back()
    expect(page.locator(".welcome")).to_be_visible()  # where the deleted one was shown


def test_export_and_import(browser, fast, page):
    ask(page, "rich", think=True)
    ask(page, "more")
    exported = stored(page, lambda file: file)
    with visiting(browser, fast) as other:
        ready(other)
        bring(other, json.dumps(exported))
        expect(other.locator("#notes")).to_contain_text("1 conversation was added.")
        other.locator("#list a").click()
        expect(other.locator("article.assistant .code").first).to_be_visible()
        again = stored(other, lambda file: file)
        bring(other, "{}")
        expect(other.locator("#notes")).to_contain_text("holds no conversations")

    def told(file):
        return [{**node, "id": 0, "parent": 0} for node in file["conversations"][0]["nodes"]]

    assert told(again) == told(exported)


def test_a_conversation_of_the_terminal_can_be_imported(page, tmp_path):
    from axk1.chat.conversation import Conversation

    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "KST"}}}
    last = {"role": "assistant", "content": "yes", "reasoning_content": "hm", "tool_calls": [call]}
    turns = [{"role": "user", "content": "hi"}, last]
    Conversation("Be kind.", True, 9, turns).save(tmp_path / "saved.json")
    ready(page)
    bring(page, (tmp_path / "saved.json").read_text())
    page.locator("#list a").click()
    expect(page.locator("article.assistant .body > .prose")).to_have_text("yes")
    expect(page.locator("article.assistant .calls summary")).to_have_text("Calls clock")
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "go on")
    assert [turn["role"] for turn in asked.value.post_data_json["messages"]] == ["system", "user", "assistant", "user"]


# When something breaks


def test_a_lost_connection_keeps_the_text_and_goes_on(page):
    ready(page)
    part = {"choices": [{"delta": {"content": "Hello th"}, "finish_reason": None}], "usage": None}
    headers = {"content-type": "text/event-stream", "x-axk1-seed": "5", "x-request-id": "x"}
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=200, headers=headers, body=f"data: {json.dumps(part)}\n\n"),
        times=1,
    )
    answer = ask(page, "hi")
    expect(answer.locator(".body > .prose")).to_have_text("Hello th")
    expect(answer.locator(".notice")).to_contain_text("The connection ended")
    answer.get_by_role("button", name="Continue").click()
    expect(answer.locator(".body > .prose")).to_have_text("Hello there! 안녕하세요.")
    expect(answer.locator(".notice")).to_be_empty()


def test_a_page_that_is_closed_while_it_writes_keeps_what_came(slowly):
    answer = ask(slowly, "a long reply", wait=False)
    expect(answer.locator(".body > .prose")).to_contain_text("word " * 100)  # a second: it is written every half
    slowly.reload()
    expect(answer.locator(".body > .prose")).to_contain_text("word word")
    expect(answer.locator(".notice").get_by_role("button", name="Continue")).to_be_visible()


def test_what_the_server_refuses_is_told(browser, fast):
    with visiting(browser, fast, complaints=True) as page:
        answer = ask(page, "word " * 5000)
        expect(answer.locator(".notice")).to_contain_text("4096 fit")
        expect(page.locator("#announcer")).to_have_text("That did not work.")


def test_a_key_is_asked_for(browser, tokenizer):
    locked = Settings(api_keys=["sesame"])  # pyright: ignore[reportArgumentType]
    with serving(engine(tokenizer), tokenizer, locked) as running, visiting(browser, running, complaints=True) as page:
        dialog = page.get_by_role("dialog", name="This server asks for a key")
        dialog.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        dialog.get_by_label("API key").fill("sesame")
        page.keyboard.press("Enter")
        expect(ask(page, "hi").locator(".body > .prose")).to_have_text("Hello there! 안녕하세요.")
        assert page.evaluate("[sessionStorage['axk1.key'], localStorage['axk1.key']]") == ["sesame", None]
        page.reload()  # of this tab it is remembered
        ask(page, "hi again")


# For everybody


def test_keyboard(slowly):
    ready(slowly)
    field = slowly.locator("#input")
    expect(field).to_be_focused()
    slowly.keyboard.type("one")
    slowly.keyboard.press("Shift+Enter")
    slowly.keyboard.type("two")
    expect(field).to_have_value("one\ntwo")
    field.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    expect(field).to_have_value("one\ntwo")  # the Enter that ends a syllable sends nothing
    slowly.keyboard.press("Alt+t")
    expect(slowly.locator("#think")).to_have_attribute("aria-checked", "true")
    slowly.keyboard.press("Enter")
    expect(slowly.locator(".bubble")).to_have_text("one\ntwo")
    ended(slowly)
    expect(field).to_be_focused()
    slowly.keyboard.press("ArrowUp")
    expect(slowly.locator(".user textarea")).to_be_focused()
    slowly.keyboard.press("Escape")
    slowly.keyboard.press("Control+/")
    expect(slowly.get_by_role("dialog")).to_contain_text("Stop the answer")
    slowly.keyboard.press("Escape")
    expect(slowly.get_by_role("dialog")).to_have_count(0)


def test_a_screen_reader_hears_the_end_once(page):
    heard = page.locator("#announcer")
    assert heard.get_attribute("aria-live") == "polite"
    ask(page, "hi")
    expect(heard).to_have_text("Hello there! 안녕하세요.")
    ask(page, "a long reply")
    expect(heard).to_have_text("The answer is complete.")


@pytest.mark.parametrize(
    ("locale", "new"),
    [
        ("ko-KR", "새 대화"),
        ("ja-JP", "新しい会話"),
        ("zh-CN", "新对话"),
        ("es-MX", "Nueva conversación"),
        ("fr-FR", "New conversation"),
    ],
)
def test_languages(browser, fast, locale, new):
    with visiting(browser, fast, locale=locale) as page:
        ready(page)
        expect(page.locator("#new")).to_have_text(new)
        assert page.evaluate("document.documentElement.lang") == (locale[:2] if locale[:2] != "fr" else "en")
        page.locator("#settings").click()
        page.locator("dialog select").first.select_option("es")
        expect(page.locator("#new")).to_have_text("Nueva conversación")
        expect(page.locator("dialog h2")).to_have_text("Ajustes")
        page.reload()
        expect(page.locator("#new")).to_have_text("Nueva conversación")


def test_every_language_has_every_text(page):
    texts = page.evaluate(
        "Promise.all(['en', 'ko', 'ja', 'zh', 'es'].map((code) => import(`/page/strings/${code}.js`)))"
        ".then((modules) => modules.map((module) => module.default))"
    )

    def shape(strings):
        one = {name: text if isinstance(text, str) else text["other"] for name, text in strings.items()}
        return {name: sorted(re.findall(r"\{\w+\}", text)) for name, text in one.items()}

    assert all(shape(strings) == shape(texts[0]) for strings in texts)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_keeps_anybody_out_and_nothing_sticks_out(browser, fast, size, scheme):
    def check(what):
        found = Axe().run(page)
        assert found.violations_count == 0, f"{what}: {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), what

    touch = {"is_mobile": True, "has_touch": True} if size is PHONE else {}
    with visiting(browser, fast, viewport=size, color_scheme=scheme, reduced_motion="reduce", **touch) as page:
        ready(page)
        check("empty")
        page.locator("#think").click()
        page.locator("#input").fill("rich")
        page.locator("#send").click()
        ended(page)
        page.locator("details summary").click()
        check("conversation")
        page.locator("#input").fill("look up")
        page.locator("#send").click()
        ended(page)
        page.locator(".calls summary").first.click()
        check("calls")
        if size is PHONE:
            page.locator("#toggle").click()
            check("sidebar")
        page.locator("#settings").click()
        check("settings")
        page.get_by_role("button", name="Done").click()
        page.locator("#shortcuts").click()
        check("shortcuts")


def test_the_theme_can_be_chosen(page):
    ready(page)
    page.locator("#settings").click()
    page.get_by_label("Theme").select_option("dark")
    dark = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(dark) == "rgb(22, 25, 27)"
    page.reload()
    assert page.evaluate(dark) == "rgb(22, 25, 27)"


def test_the_nano_answers(browser, tokenizer):
    from axk1.chat import Chat
    from axk1.engine.engine import ModelEngine
    from axk1.engine.settings import Settings as EngineSettings
    from axk1.load import load

    model = ModelEngine(Chat(*load(NANO, dtype="float32")).model, EngineSettings(streams=4, pages=128))
    with serving(model, tokenizer, Settings(names=["nano"])) as running, visiting(browser, running) as page:
        answer = ask(page, "What is 17 + 25?", think=True)
        expect(answer.locator(".body > .prose")).to_contain_text("42")
        expect(answer.locator("summary")).to_contain_text("Thought for")
        expect(page.locator("#model")).to_have_text("nano")
