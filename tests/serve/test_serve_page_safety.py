"""The page in a real browser: what text can do there (nothing), what long text costs, and whose libraries it uses."""

import hashlib
import json
import re
from collections.abc import Iterator

import pytest
from browsing import ask, bring, ended, needs_chromium, ready, visiting
from playwright.sync_api import Browser, Page, expect
from serving import Running, serving

from axk1.engine.scripted import Pace, Script, ScriptedEngine
from axk1.serve.app import PAGE

pytestmark = needs_chromium
HARM = "window.harmed=1"
ATTACKS = [
    f"<script>{HARM}</script>",
    f"<img src=x onerror={HARM}>",
    f"<img src=/health onload={HARM}>",
    f"<svg onload={HARM}><animate onbegin={HARM} attributeName=x dur=1s></svg>",
    f"<svg><script>{HARM}</script></svg>",
    f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror={HARM}&gt;'>",
    f"<math><mi><mglyph><svg><mtext><textarea><path id='</textarea><img onerror={HARM} src=1>'>",
    f"<form><math><mtext></form><form><mglyph><style></math><img src onerror={HARM}>",
    f"<noscript><p title='</noscript><img src=x onerror={HARM}>'>",
    f"<iframe srcdoc='<script>parent.{HARM}</script>'></iframe><iframe src=javascript:{HARM}></iframe>",
    f"<details open ontoggle={HARM}>x</details><input autofocus onfocus={HARM}><body onload={HARM}>",
    f"<a href=javascript:{HARM}>x</a><form action=javascript:{HARM}><button>x</button></form>",
    "<base href=https://evil.example><link rel=stylesheet href=https://evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'><style>@import 'https://evil.example'</style>",
    "<object data=https://evil.example></object><embed src=https://evil.example><video src=https://evil.example>",
    f"[x](javascript:{HARM}) [x](JaVaScRiPt:{HARM}) [x](<java\tscript:{HARM}>) [x](&#106;avascript:{HARM})",
    f"[x](data:text/html,<script>{HARM}</script>) [x](vbscript:x) [x](/v1/models) [x](//evil.example) [x](blob:x)",
    f"![x](javascript:{HARM}) ![x](https://evil.example/pixel.png) ![x](/health) ![](data:image/svg+xml,x)",
    f'!["onerror={HARM} x="](https://evil.example/"onerror={HARM})',
    f"[x](https://a.example \"' onmouseover={HARM} x='\") <https://a.example/'onclick={HARM}> <javascript:{HARM}>",
    f"[x]: javascript:{HARM}\n\n[x] [x][] https://evil.example/<script>{HARM}</script>",
    f"```html onclick={HARM}\n<script>{HARM}</script>\n```",
    f'```"><img/src/onerror={HARM}>\n</code></pre><img src=x onerror={HARM}>\n```',
    f"`</code><img src=x onerror={HARM}>` **<b onclick={HARM}>x</b>**",
    f'| <img src=x onerror={HARM}> | x |\n|:--" onclick={HARM}:|---|\n| <svg/onload={HARM}> | x |',
    f"\\(\\href{{javascript:{HARM}}}{{x}}\\) \\(\\url{{javascript:{HARM}}}\\)",
    "\\(\\includegraphics{https://evil.example/x}\\)",
    f"\\[\\text{{<img src=x onerror={HARM}>}}\\] \\(</math><img src=x onerror={HARM}>\\) \\(\\class{{x}}{{y}}\\)",
    "\\(\\def\\x{\\x\\x}\\x\\) \\(\\style{background:url(https://evil.example)}{x}\\) \\(\\htmlStyle{color:red}{x}\\)",
    f"$$<script>{HARM}</script>$$ \\(\\unicode{{x3c}}img\\)",
    f"{{{{constructor.constructor('{HARM}')()}}}} ${{{HARM}}} <%= {HARM} %>",
    f"<div id=send><a id=messages name=model><form id=composer><input name=innerHTML></form> <x-x onclick={HARM}>",
    f'<tool_call>{{"name": "<img src=x onerror={HARM}>", "arguments": {{"<script>{HARM}</script>": 1}}}}</tool_call>',
    f"\u0000<scr\u0000ipt>{HARM}</scr\u0000ipt> <\u200bimg src=x onerror={HARM}> \u202ejs.exe",
]
CORPUS = "\n\n".join(ATTACKS)
INERT = """() => {
  const own = new Set(["main.js", "theme.js", "vendor/temml.js"]);
  const all = [...document.querySelectorAll("*")];
  const strange = "img, iframe, object, embed, video, audio, base, style, frame, template, portal, x-x, animate";
  return {
    harmed: window.harmed === 1,
    elements: all.filter((e) => e.matches(strange)).map((e) => e.outerHTML),
    scripts: [...document.scripts].map((e) => e.getAttribute("src")).filter((name) => !own.has(name)),
    handlers: all.flatMap((e) => [...e.attributes]).filter((a) => /^on|^srcdoc$|^action$/i.test(a.name)).length,
    styles: [...document.querySelectorAll("[style]")].filter((e) => !e.closest("math") && e.id !== "input").length,
    links: all.filter((e) => e.hasAttribute("href") && !e.matches("use, link, .skip, #list a"))
      .map((e) => e.getAttribute("href")).filter((href) => !/^(https?:\\/\\/|mailto:)/.test(href)),
    copies: ["send", "messages", "model", "composer", "input"]
      .filter((id) => document.querySelectorAll(`#${id}`).length > 1),
  };
}"""


def code(lines: int) -> str:
    body = "\n".join(f"    total_{n} = compute(values[{n}], 'text {n}')  # step {n}" for n in range(lines))
    return f"```python\ndef long(values):\n{body}\n```\n\n"


def long_reply(size: int) -> str:
    """Markdown of all kinds: prose, formulas, a long list, tables, and a block of code of some 20 KB."""
    part = (
        "## Part {n}\n\nSome **prose** with `code`, \\(x_{n}^2\\) and a [link](https://example.org/{n}) in it, which "
        "goes on for a while, as answers do.\n\n| a | b |\n|---|---|\n| {n} | two |\n\n\\[ \\sum_{{i=1}}^{n} i \\]\n\n"
    )
    text = code(300) + "".join(f"{n}. an item of a long list with *words*\n" for n in range(1, 151)) + "\n"
    n = 0
    while len(text) < size:
        text += part.format(n=(n := n + 1)) + (code(4) if n % 10 == 0 else "")
    return text


LONG = long_reply(60_000)
DRAWN = """() => {
  const prose = document.querySelector("article.assistant .prose");
  const elements = [...prose.querySelectorAll(":not(span, .tail)")].map((e) => e.tagName);
  return [prose.textContent.replace(/\\s+/g, ""), elements.join()];
}"""
UNTIL_IT_ENDS = """() => new Promise((done) => {
  const send = document.getElementById("send");
  const observer = new MutationObserver(() => send.hidden || (observer.disconnect(), setTimeout(done, 1000)));
  observer.observe(send, { attributes: true });
})"""


class Bursts(ScriptedEngine):
    """Writes 32 tokens before it waits: a model that is faster than anyone reads."""

    def _step(self, runs) -> None:
        for run in runs:
            script = run._thought or run._reply
            piece, script[:31] = script[:31], []
            if piece:
                run._history.tokens.extend(piece)
                run.generation.push(piece, None)
        super()._step(runs)


@pytest.fixture(scope="module")
def server(tokenizer) -> Iterator[Running]:
    scripts = [Script([CORPUS], "attack", CORPUS), Script([LONG], "everything"), Script(["fine"], "")]
    engine = Bursts(tokenizer, scripts, Pace(token=0.004), max_tokens=100_000)
    with serving(engine, tokenizer) as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    with visiting(browser, server) as page:
        yield page


def is_inert(page: Page) -> None:
    page.wait_for_timeout(200)  # for what is loaded or animated
    found = page.evaluate(INERT)
    assert not any(found.values()), found


def test_attacks_in_answer_and_reasoning(page):
    answer = ask(page, "attack", think=True)
    for summary in answer.locator("summary").all():
        summary.click()
    expect(answer.locator(".arguments")).to_contain_text("<script>window.harmed=1</script>")
    expect(answer.locator("details .prose")).to_contain_text("<noscript>")
    expect(answer.locator(".body > .prose")).to_contain_text("<script>window.harmed=1</script>")
    is_inert(page)
    for element in answer.locator(".prose :is(a, summary, code, th)").all():
        element.dispatch_event("mouseover")
    is_inert(page)


def test_attacks_in_questions_titles_and_names(page):
    for attack in ATTACKS[:10]:
        ask(page, attack.split("\n")[0])
        page.locator("#new").click()
    ask(page, CORPUS)
    page.get_by_role("button", name="Rename").first.click()
    page.get_by_role("textbox", name="New title").fill(ATTACKS[1])
    page.keyboard.press("Enter")
    expect(page.locator("#list a").first).to_have_text(ATTACKS[1])
    expect(page.locator("h1")).to_have_text(ATTACKS[1])
    page.get_by_role("button", name=re.compile("^Delete")).first.click()  # the title in a note
    is_inert(page)


def test_attacks_in_an_imported_file(page):
    ready(page)
    node = {"id": CORPUS, "parent": None, "role": "assistant", "content": CORPUS, "reasoning": CORPUS, "error": CORPUS}
    node |= {"model": CORPUS, "seed": CORPUS, "state": "failed", "usage": {"completion": CORPUS}, "seconds": CORPUS}
    node |= {"asked": {"seed": CORPUS, "__proto__": {"x": 1}}, "__proto__": {"harmed": 1}, "onclick": HARM}
    cycle = {"id": 1, "parent": 1, "role": "user", "content": ATTACKS[0]}
    hostile = [
        {"title": CORPUS, "nodes": [node], "leaf": CORPUS, "settings": {"system": CORPUS, "temperature": CORPUS}},
        {"title": {"toString": HARM}, "nodes": [cycle, {**cycle, "id": 2, "parent": 2}], "leaf": 2, "updated": CORPUS},
        {"title": "odd", "nodes": [None, 3, {"role": ["x"], "content": {"a": 1}}], "leaf": "nowhere"},
        {"title": "empty", "nodes": []},
    ]
    bring(page, json.dumps({"format": "axk1 conversations", "version": 1, "conversations": hostile}))
    expect(page.locator("#list li")).to_have_count(4)
    for link in page.locator("#list a").all():
        link.click()
        is_inert(page)
    for broken in ("", "null", "[]", '{"messages": 3}', '{"format": "axk1 conversations", "conversations": [{}]}'):
        bring(page, broken)
    expect(page.locator("#list li")).to_have_count(4)
    assert page.evaluate("({}).x") is None


def test_the_policy_allows_no_text_to_become_code(browser, server):
    with visiting(browser, server, complaints=True) as page:
        ready(page)
        refused = page.evaluate(
            "() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch (error) { return error.name } }"
        )
    assert refused == "TypeError"  # trusted types
    with server.client() as client:
        policy = client.get("/page/").headers["content-security-policy"]
    assert "trusted-types dompurify" in policy and "unsafe" not in policy and "http" not in policy


def test_60_kilobytes_cost_no_frame_more_than_100_ms(browser, server):
    """The processor's time of each task of the page's main thread (script, layout, paint), which other work on the
    machine does not change, as Chromium traces it. The text comes as fast as the engine writes it."""
    assert len(LONG) >= 60_000
    with visiting(browser, server) as page:
        ready(page)
        browser.start_tracing(page=page, categories=["toplevel", "disabled-by-default-devtools.timeline"])
        answer = ask(page, "everything", wait=False)
        page.evaluate(UNTIL_IT_ENDS)  # expect() would look again and again, which takes longer than a frame
        trace = json.loads(browser.stop_tracing())["traceEvents"]
        ended(page)
        expect(answer.locator("table")).to_have_count(LONG.count("| a | b |"))
        text, elements = page.evaluate(DRAWN)
        assert text.count("anitemofalonglist") == 150 and "total_299" in text
        expect(answer.locator(".prose > ol")).to_have_count(1)  # drawn item by item, it is one list
        expect(answer.locator(".prose > ol > li")).to_have_count(150)
        page.reload()
        expect(answer.locator("table")).to_have_count(LONG.count("| a | b |"))
        page.wait_for_timeout(500)
        assert page.evaluate(DRAWN) == [text, elements]  # at once and bit by bit are the same
    tasks = longest_tasks(trace)
    assert len(tasks) > 500 and tasks[0] < 100, tasks[:10]


def longest_tasks(trace: list[dict]) -> list[float]:
    """Milliseconds of the processor for each task of the renderer's main thread, the longest first."""
    threads = {
        (event["pid"], event["tid"])
        for event in trace
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        event["tdur"] / 1000
        for event in trace
        if event["name"].endswith("RunTask") and (event["pid"], event["tid"]) in threads and "tdur" in event
    ]
    return sorted(tasks, reverse=True)


def test_libraries_are_what_their_authors_published():
    """``docs/vendor.py`` compares the same hashes with the packages on npm."""
    manifest = json.loads((PAGE / "vendor" / "manifest.json").read_text(encoding="utf-8"))
    files = {name: file["sha256"] for package in manifest.values() for name, file in package["files"].items()}
    there = {path.name for path in (PAGE / "vendor").iterdir()} - {"manifest.json"}
    assert there == set(files) and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in files.values())
    for name, digest in files.items():
        assert hashlib.sha256((PAGE / "vendor" / name).read_bytes()).hexdigest() == digest, name
    assert all(any(name.endswith(".LICENSE") for name in package["files"]) for package in manifest.values())
    assert all(package["integrity"].startswith("sha512-") and package["licence"] for package in manifest.values())


def test_the_pages_own_files_name_no_address_elsewhere():
    known = {"http://www.w3.org/2000/svg"}  # a name of XML, which nobody asks
    for path in PAGE.iterdir():
        if path.is_file():
            found = set(re.findall(r"https?://[\w./-]+", path.read_text(encoding="utf-8")))
            assert found <= known, f"{path.name}: {found}"
