"""How the web page looks: its parts, style and the little JavaScript it needs; nothing is fetched from elsewhere."""

import logging
import os
from functools import partial
from urllib.parse import urlsplit

import gradio as gr
from gradio.themes import Base, colors, sizes
from starlette.middleware import Middleware

from salmonn.common.errors import UserError
from salmonn.inference.engine import LONGEST_QUESTION, MOST_BEAMS
from salmonn.web.conversation import Conversation
from salmonn.web.gate import Gate, own_names
from salmonn.web.page import TWO_CLIPS, Page, task_label

_HOUR, _DAY = 3600, 24 * 3600  # s; an upload is kept for a day, and removed within the next hour

THEME = Base(
    primary_hue=colors.blue,
    neutral_hue=colors.slate,
    text_size=sizes.text_md,
    radius_size=sizes.radius_md,
    font=["system-ui", "sans-serif"],  # plain strings: no font comes from the network
    font_mono=["ui-monospace", "monospace"],
).set(body_text_color_subdued="*neutral_500")

CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; overflow: clip !important; }
.gradio-container .column { min-width: min(300px, 100%) !important; }
#waveform { contain: inline-size; }  /* else it keeps the page as wide as it once was */
#heading h1 { font-size: 1.6rem; letter-spacing: -0.01em; margin: 0; }
#heading p, #heading details { color: var(--body-text-color-subdued); margin: 0.2rem 0 0; overflow-wrap: anywhere; }
#heading summary { cursor: pointer; }
#heading > .html-container, #error > .html-container, #picture > .html-container,
#tasks-label > .html-container, .aside > .html-container { padding: 0 !important; }
#error { position: sticky; top: 8px; z-index: 20; }
#error:not(:has([role=alert])) { display: none; }
#error [role=alert] {
  border: 1px solid #b91c1c; border-left-width: 6px; border-radius: 6px; padding: 10px 12px;
  background: #fef2f2; color: #7f1d1d; white-space: pre-wrap; overflow-wrap: anywhere;
}
#picture img { width: 100%; display: block; }
.block:not(#error):has(> .html-container > .prose:empty) { display: none; }
.message { word-break: keep-all; overflow-wrap: anywhere; }  /* Korean breaks between words, as it is printed */
.note { color: var(--body-text-color-subdued); overflow-wrap: anywhere; margin: 0; }
#tasks-label p { color: var(--block-label-text-color); margin: 0; }
#tasks, .tasks { gap: 6px; }
#tasks { margin-top: -8px; }
#tasks button, .tasks button { flex: 0 1 auto; min-width: 0; font-weight: 400; }
#settings .form { border: 0; box-shadow: none; }
.gradio-container:not(:has(.busy)) #stop { display: none; }
.gradio-container:has(#picture img) #chat .without-clip, #chat .with-clip { display: none; }
.gradio-container:has(#picture img) #chat .with-clip { display: inline; }
#examples .gallery { max-height: 12rem; overflow-y: auto; }
.toast-wrap, [data-testid=status-tracker]:has(> .error) { display: none !important; }
@media (max-width: 640px) {
  .gradio-container .main { padding: 16px !important; }
  #chat { height: 340px !important; }
  #parts { flex-direction: column; }
  #parts > .column { display: contents; }  /* so that what is asked stands below the clip, its picture last */
  #parts .later { order: 1; }
  #parts .last { order: 2; }
  .gradio-container:has(#picture img) #parts :is(#examples, #compare, .form:has(#in-windows)) { order: 2; }
}
"""

# Gradio shows what goes wrong outside our functions (an upload that is too large, a lost connection)
# as a passing notice in a corner: it is told in the page's own error box, until the next click.
_MOVE_NOTICES = """
const told = () => document.querySelector("#error .told");
new MutationObserver(() => {
  for (const notice of document.querySelectorAll(".toast-body:not([data-told])")) {
    notice.dataset.told = "yes";
    const text = notice.querySelector("[data-testid=toast-text]")?.textContent.trim();
    const alert = told() ?? document.createElement("div");
    alert.className = "told";
    alert.setAttribute("role", "alert");
    alert.textContent = text || "Something went wrong.";
    document.querySelector("#error").append(alert);
  }
}).observe(document.documentElement, {childList: true, subtree: true});
for (const kind of ["pointerdown", "change", "drop"]) {
  document.addEventListener(kind, () => told()?.remove(), true);
}
"""

_ICON = (
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'>"
    "<rect width='32' height='32' rx='7' fill='%231f77b4'/>"
    "<path d='M7 13v6M13 8v16M19 11v10M25 14v4' stroke='white' stroke-width='3' stroke-linecap='round'/></svg>"
)

# Writes the conversation to a file in the browser: nothing of it is kept here.
_DOWNLOAD = """(messages) => {
  const text = message => [message.content].flat().map(part => part.text ?? part).join("");
  const lines = messages.map(message => (message.role == "user" ? "? " : "") + text(message) + "\\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\\n")], {type: "text/plain"}));
  link.download = "conversation.txt";
  link.click();
  URL.revokeObjectURL(link.href);
}"""

_PLACEHOLDER = (
    '<span class="without-clip">Choose a clip, then ask.</span>'
    '<span class="with-clip">Ask about the clip, or press one of the tasks.</span>'
)
_CARDS = 8  # examples on a page

HEAD = f'<link rel="icon" href="{_ICON}"><script>{_MOVE_NOTICES}</script>'


def build(page: Page) -> gr.Blocks:
    """The parts of the page and what each of them sets off."""
    engine = page.engine
    with gr.Blocks(title="SALMONN", analytics_enabled=False, delete_cache=(_HOUR, _DAY)) as blocks:
        conversation = gr.State(Conversation())
        gr.HTML(
            "<h1>SALMONN</h1><p>Give it a clip of speech, sounds or music, and ask about what it hears.</p>"
            + page.about(),
            elem_id="heading",
        )
        error = gr.HTML(elem_id="error")
        with gr.Row(elem_id="parts"):
            with gr.Column(min_width=300):
                clip = gr.Audio(
                    label="Clip", sources=["upload", "microphone"], type="filepath", buttons=[], elem_id="clip"
                )
                example = gr.Dataset(
                    components=["textbox"], samples=[[name] for name in page.examples], type="index",
                    sample_labels=list(page.examples), samples_per_page=_CARDS, label="Examples",
                    visible=bool(page.examples), elem_id="examples",
                )  # fmt: skip
                in_windows = gr.Checkbox(
                    False,
                    label=f"Hear all of a long clip, not only its first {engine.model.max_seconds:g} s",
                    elem_id="in-windows",
                )
                clip_note = gr.HTML(elem_classes="aside")
                with gr.Accordion(
                    "A second clip, to compare", open=False, visible=TWO_CLIPS in page.tasks[0], elem_id="compare"
                ):
                    second = gr.Audio(
                        label="Heard after the first", sources=["upload", "microphone"], type="filepath", buttons=[],
                        elem_id="second",
                    )  # fmt: skip
                picture = gr.HTML(elem_id="picture", elem_classes="last")
            with gr.Column(min_width=300):
                chat = gr.Chatbot(
                    label="Answers", height=400, buttons=[], feedback_options=None, layout="bubble",
                    render_markdown=False, placeholder=_PLACEHOLDER, elem_id="chat", elem_classes="later",
                )  # fmt: skip
                answer_note = gr.HTML(elem_classes=["aside", "later"])
                question = gr.Textbox(
                    label="Question", placeholder="What is said?", max_length=LONGEST_QUESTION, lines=1
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", min_width=100)
                    stop = gr.Button("Stop", min_width=100, scale=0, elem_id="stop")
                buttons = _task_buttons(page)
                with gr.Row(elem_classes="last"):
                    download = gr.Button("Save the conversation", size="sm")
                settings = _settings(page)

        # Whoever asks waits for the model in `RequestQueue`, where it can be stopped; gradio's queue lets all in.
        served = {"api_visibility": "private", "concurrency_limit": None}
        at_once = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        hearing = {
            "inputs": [conversation, clip, in_windows, second],
            "outputs": [conversation, chat, picture, clip_note, answer_note, error],
        }
        again = partial(page.listen, keeps_turns=True)
        for event, listen in ((clip.change, page.listen), (second.change, page.listen), (in_windows.change, again)):
            heard = event(listen, **hearing, **served, trigger_mode="multiple", show_progress="hidden")
            heard.then(page.drop_unheard, conversation, clip, **at_once)
        asking = {
            "inputs": [conversation, question, *settings],
            "outputs": [chat, question, answer_note, error],
            "show_progress_on": [chat],
        }
        for event in (ask.click, question.submit):
            event(page.ask, **asking, **served, trigger_mode="multiple")
        for name, button in buttons.items():
            button.click(partial(page.ask, task=name), **asking, **served)

        stop.click(Conversation.stop, conversation, None, **at_once)
        chat.clear(page.clear, conversation, [chat, answer_note], **at_once)
        example.click(page.choose, example, clip, **at_once)
        download.click(None, chat, None, js=_DOWNLOAD, **at_once)
    return blocks.queue()


def _task_buttons(page: Page) -> dict[str, gr.Button]:
    """A button for each task: those that the model was trained for in view, the others behind "more"."""
    trained, others = page.tasks
    gr.HTML("<p>Or one of its tasks</p>", elem_id="tasks-label")
    with gr.Row(elem_id="tasks"):
        buttons = {name: gr.Button(task_label(name), size="sm") for name in trained}
    with (
        gr.Accordion("More, for which this model was not trained", open=False, visible=bool(others)),
        gr.Row(elem_classes="tasks"),
    ):
        return buttons | {name: gr.Button(task_label(name), size="sm") for name in others}


def _settings(page: Page) -> list[gr.components.Component]:
    """Beams, sampling, temperature, top-p, LoRA scaling: what `Page.ask` takes."""
    generate, model = page.engine.config.generate, page.engine.model
    scaling = model.lora_scaling
    with gr.Accordion("Settings", open=False, elem_id="settings", elem_classes="last"):
        return [
            gr.Slider(
                1, min(MOST_BEAMS, max(8, generate.num_beams)), generate.num_beams, step=1,
                label="Beams", info="Answers searched for at a time; with 1 the answer appears word by word.",
            ),
            gr.Checkbox(generate.do_sample, label="Sample", info="Draw words by chance, not the likeliest."),
            gr.Slider(0.05, 2, generate.temperature, step=0.05, label="Temperature", info="Of sampling: how freely."),
            gr.Slider(0.05, 1, generate.top_p, step=0.05, label="Top-p", info="Of sampling: from how many words."),
            gr.Slider(
                0, max(8, 2 * scaling), scaling, step=0.1, label="LoRA scaling",
                info=f"Weight of the adapters; {scaling:g} as loaded.", visible=model.config.lora,
            ),
        ]  # fmt: skip


def serve(blocks: gr.Blocks, host: str, port: int, share: bool, max_upload_mb: float, files: list[str]) -> str:
    """Serve the page from a thread of its own, and return its address; `files` are those it may show besides uploads.

    Raises UserError if the port is taken or there is no public address to be had.
    """
    here = ",".join(filter(None, (os.environ.get("no_proxy"), os.environ.get("NO_PROXY"), host, "localhost")))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = here  # gradio asks its own server whether it is there
    largest_file, names = int(max_upload_mb * 2**20), own_names(host)
    gate = Middleware(Gate, names=names, largest_file=largest_file)
    try:
        _, url, public_url = blocks.launch(
            server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True,
            max_file_size=largest_file, allowed_paths=files, app_kwargs={"middleware": [gate]},
            theme=THEME, css=CSS, head=HEAD, footer_links=[], run_history=False, enable_monitoring=False,
            ssr_mode=False, mcp_server=False, pwa=False, inbrowser=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"http://{host}:{port} cannot be served ({error}): choose another --port") from error
    if share and not public_url:
        raise UserError("--share: gradio's servers gave no public address; without --share the page is local")
    if public_url:
        names.add(urlsplit(public_url).hostname or "")
    return public_url or url


def close(blocks: gr.Blocks) -> None:
    """End serving at once, whoever is still connected."""
    if blocks.server:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would show a traceback for each of them
        blocks.server.force_exit = True
    blocks.close(verbose=False)
