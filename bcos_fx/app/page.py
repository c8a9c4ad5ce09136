"""The page: Gradio's components around an :class:`~bcos_fx.app.explorer.Explorer`. Imports gradio, an extra.

Nothing that comes from a photograph or a network is read as HTML: texts are escaped, and the signs that Gradio's
templates obey are escaped too. The page asks nothing outside its own server, which its content security policy holds
the browser to.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from bcos_fx.app.explorer import LISTED, WAYS, Classes, Explorer, Region
from bcos_fx.audit.network import network_sections
from bcos_fx.audit.page import section_html
from bcos_fx.budgets import IMAGE_BYTES
from bcos_fx.errors import BcosFxError
from bcos_fx.escaping import shown_in_a_line, shown_in_html

HOST = "127.0.0.1"
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; base-uri 'self'; "
    "object-src 'none'; frame-ancestors 'none'"
)
_TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`\\"})


def application(explorer: Explorer) -> FastAPI:
    """Return the whole application: the page at ``/``, reports at ``/report/SHA256``."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    # A page of another site that has its name point here could otherwise read what this one shows.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

    @app.middleware("http")
    async def restricted(request: Request, answer: Any) -> Response:
        response: Response = await answer(request)
        response.headers.setdefault("Content-Security-Policy", _POLICY)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Referrer-Policy", "no-referrer")
        return response

    @app.get("/report/{photo}")
    def report(photo: str, target: int | None = None, against: int | None = None) -> Response:
        classes = tuple(index for index in (target, against) if index is not None)
        try:
            return Response(explorer.report(photo, classes), media_type="text/html; charset=utf-8")
        except BcosFxError as error:
            return Response(message(error), status_code=404, media_type="text/plain; charset=utf-8")

    with resources.as_file(resources.files("bcos_fx.app").joinpath("page.css")) as style:
        mounted: FastAPI = gr.mount_gradio_app(
            app,
            blocks(explorer),
            path="/",
            server_name=HOST,
            footer_links=[],
            run_history=False,
            allowed_paths=[],
            show_error=False,
            max_file_size=IMAGE_BYTES.limit,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=Path(style).read_text(encoding="utf-8"),
        )
    return mounted


def message(error: BcosFxError) -> str:
    """Return what a user reads of an error; not where, which is a path of the server's own."""
    return shown_in_a_line(f"{error.what}; {error.hint}" if error.hint else error.what)


def html(text: str) -> str:
    """Return HTML so that Gradio's templates take it as it is."""
    return text.translate(_TEMPLATE_SIGNS)


def two(picks: list[int]) -> Classes:
    """Return what is explained after a click: of more than two classes, the first and the one clicked last."""
    return (picks[0], picks[-1]) if len(picks) > 1 else tuple(picks)


def blocks(explorer: Explorer) -> Any:  # gr.Blocks, of whose type the library says nothing
    """Return the page of an explorer: its components, and which of them each event reads and changes."""
    height, width = explorer.preprocessing.size
    names = [(shown_in_a_line(explorer.name(index)), index) for index in range(explorer.classes)]
    with gr.Blocks(analytics_enabled=False, title=f"{explorer.model.name}: bcos-fx", delete_cache=(60, 600)) as page:
        head = f"<h1>{shown_in_html(explorer.model.name)}</h1><p>{shown_in_html(explorer.glance())}</p>"
        gr.HTML(html(head), elem_id="head")
        photo = gr.State("")
        with gr.Row():
            with gr.Column(min_width=300):
                file = gr.File(label="Photograph", type="filepath", height=140, elem_id="photograph")
                status = gr.HTML(elem_id="status", padding=True)
                label = "Classes: one, or two for their difference"
                picks = gr.CheckboxGroup(label=label, visible=False, elem_id="classes")
                more = gr.Dropdown(names, label="Another class", value=None, visible=False, elem_id="more")
            with gr.Column(min_width=300, scale=2, visible=False) as right:
                way = gr.Dropdown(list(WAYS), value=WAYS[0], label="Explained by", filterable=False, elem_id="way")
                with gr.Row():
                    seen = _picture("What the network sees: click a region", "seen")
                    drawn = _picture("Explanation: click a region", "map")
                with gr.Row():
                    row = _slider("Row", 0, height - 1, height // 2)
                    column = _slider("Column", 0, width - 1, width // 2)
                    side = _slider("Side of the region", 1, max(height, width), max(1, min(height, width) // 8))
                with gr.Row():
                    with gr.Column(min_width=280):
                        answer = gr.HTML(elem_id="answer", padding=True)
                    with gr.Column(min_width=280):
                        region = gr.HTML(elem_id="region", padding=True)
                link = gr.HTML(elem_id="link", padding=True)
                with gr.Accordion("Constants", open=False):
                    constants = gr.HTML(elem_id="constants")
        with gr.Accordion("The network, its proof and its certificate", open=False):
            facts = network_sections(explorer.network, explorer.certification, [("file", explorer.model.name)])
            gr.HTML(html("".join(map(section_html, facts))), elem_id="network")
        place, chosen = [row, column], [photo, picks, way, side]
        shown = [status, right, picks, more, seen, drawn, answer, region, link, constants]
        does = Events(explorer)
        private: Any = {"api_visibility": "private", "show_progress": "minimal", "trigger_mode": "always_last"}
        for event in (file.upload, file.clear):
            event(does.opened, [file, way, side], [photo, *place, *shown], **private)
        for event in (picks.input, way.input, side.input, row.input, column.input):
            event(does.chosen, [*chosen, *place], shown, **private)
        more.input(does.another, [more, *chosen, *place], shown, **private)
        for picture in (seen, drawn):
            picture.select(does.pointed, chosen, [*place, *shown], **private)
    return page


def _picture(label: str, identity: str) -> gr.Image:
    return gr.Image(label=label, format="png", interactive=False, buttons=[], elem_id=identity, min_width=260)


def _slider(label: str, low: int, high: int, value: int) -> gr.Slider:
    return gr.Slider(low, high, value=value, step=1, label=label, min_width=150, elem_id=label.split()[0].lower())


class Events:
    """What each event of the page changes: values of its components, in their order there.

    Args:
        explorer: answers them.
    """

    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer

    def opened(self, file: str | None, way: str, side: float) -> list[Any]:
        """Show another photograph, with the region that contributes most; or say why it cannot be shown."""
        try:
            photo = "" if file is None else self._explorer.add(Path(file))
            at = self._explorer.strongest(photo, (), int(side)) if photo else None
        except BcosFxError as error:
            return ["", gr.skip(), gr.skip(), *_nothing(_alert(error))]
        if at is None:
            return ["", gr.skip(), gr.skip(), *_nothing("")]
        return [photo, at.row, at.column, *self.chosen(photo, [], way, side, at.row, at.column)]

    def chosen(self, photo: str, picks: list[int], way: str, side: float, row: float, column: float) -> list[Any]:
        """Show other classes, another way or another region."""
        try:
            return self._everything(photo, two(picks), way, Region(int(row), int(column), int(side)))
        except BcosFxError as error:  # what is shown stays, to choose otherwise
            return [_alert(error), *[gr.skip()] * 9]

    def another(self, index: int | None, photo: str, picks: list[int], *rest: Any) -> list[Any]:
        """Show a class that is not among the highest, beside the one that is shown."""
        return self.chosen(photo, [*picks[:1], *([] if index is None else [index])], *rest)

    def pointed(self, photo: str, picks: list[int], way: str, side: float, event: gr.SelectData) -> list[Any]:
        """Show the region around a pixel of a picture."""
        column, row = (value // self._explorer.enlargement for value in event.index)
        return [row, column, *self.chosen(photo, picks, way, side, row, column)]

    def _everything(self, photo: str, classes: Classes, way: str, place: Region) -> list[Any]:
        explorer = self._explorer
        listed = explorer.listed(photo, classes)
        answer, constants = map(section_html, explorer.answer(photo, classes))
        query = "&".join(f"{key}={index}" for key, index in zip(("target", "against"), classes, strict=False))
        report = shown_in_html(f"/report/{photo}?{query}".removesuffix("?"))
        return [
            html(f'<p role="status">{shown_in_html(listed[0][1])}: {listed[0][2]:.1%}</p>'),
            gr.Column(visible=True),
            gr.CheckboxGroup(
                [(f"{shown_in_a_line(name)} · {share:.1%}", index) for index, name, share in listed],
                value=list(classes or listed[0][:1]),
                visible=True,
            ),
            gr.Dropdown(value=None, visible=explorer.classes > LISTED),
            *explorer.pictures(photo, classes, way, place),
            html(answer),
            html(section_html(explorer.region(photo, classes, place))),
            html(f'<p><a href="{report}" target="_blank">Report of this decision</a></p>'),
            html(constants),
        ]


def _nothing(status: str) -> list[Any]:
    hidden = [component(visible=False) for component in (gr.Column, gr.CheckboxGroup, gr.Dropdown)]
    return [status, *hidden, None, None, "", "", "", ""]


def _alert(error: BcosFxError) -> str:
    return html(f'<p role="alert">{shown_in_html(message(error))}</p>')
