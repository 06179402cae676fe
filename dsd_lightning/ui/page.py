"""Lays out the page; fields have the names and defaults of the authors' public demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from dsd_lightning.generation.arguments import DEFAULT_SHEET, sheet_of
from dsd_lightning.ui.error_messages import with_messages
from dsd_lightning.ui.files import served
from dsd_lightning.ui.story_tab import story_tab
from dsd_lightning.ui.studio import LARGEST_SEED, MOST_IMAGES, MOST_STEPS, GeneratedImage, Settings, Studio
from dsd_lightning.ui.vocabulary import unknown_words

WAITING = 16
"""Requests in the queue; later ones are refused with a message."""

REMEMBERED = 12
"""Images in a visitor's history."""

SMALL = 128
"""Images with shorter sides are magnified pixel by pixel, without smoothing."""

GUIDANCES = (("none", 1.0), *((f"{value:g}", value) for value in (1.25, 1.5, 2.0, 2.5, 3.0, 4.0)))
"""Choices of the guidance sheet: what is shown, and the value."""

TITLE = "Diffusion Self-Distillation"

_FONTS = ("system-ui", "sans-serif")
THEME = gr.themes.Base(
    primary_hue="indigo", neutral_hue="slate", font=_FONTS, font_mono=("ui-monospace", "monospace")
)  # fonts of the visitor's machine: nothing is downloaded

CSS = """
.small img { image-rendering: pixelated; }
.small .image-container img, .small .image-frame img { width: 100% !important; height: 100% !important; object-fit: contain; }
@media (max-width: 640px) {
  #main { flex-flow: column nowrap; align-items: stretch; }
  #main > * { width: 100%; max-width: 100%; min-width: 0 !important; flex: none !important; }
  #main .tabs, #main .tabitem > div { min-width: 0; max-width: 100%; }
  #work { order: -1; }
  #results { display: grid; grid-template-columns: 1fr 1fr; }
  #results > :nth-child(3) { order: -1; grid-column: 1 / 3; }
  #results > :not(:nth-child(3)) .icon-button-wrapper { top: auto; bottom: 0; }
}
"""
"""On a phone, prompt and button come first, and the result before what it was made from."""

Example = tuple[str, str]
"""File of a reference image, and a prompt."""


def build_page(studio: Studio, examples: Sequence[Example] = ()) -> gr.Blocks:
    """Return the page of a studio, with its queue; `launch` serves it.

    Args:
        studio: the model behind the page.
        examples: offered below the fields; the first one is filled in.
    """
    kind = ["small"] if studio.pipeline.config.default_size < SMALL else []
    image, text = examples[0] if examples else (None, "")
    model = studio.name.replace("`", "'")  # shown as it is, whatever a folder is called
    with gr.Blocks(analytics_enabled=False, title=TITLE, delete_cache=(3600, 86400)) as page:
        gr.Markdown(
            f"# {TITLE}\nGenerates an image of a reference's subject from a text. Model: `{model}`."
            + (" It was trained on 64 x 64 pixel images of a small synthetic world." if studio.miniature else "")
        )
        with gr.Row(elem_id="main"):
            with gr.Column(scale=2, min_width=280):
                reference = gr.Image(
                    image,
                    label="Reference",
                    type="filepath",
                    image_mode=None,
                    height=260,
                    elem_classes=kind,
                    sources=["upload", "clipboard"],
                    elem_id="reference",
                )
                shared = _settings(studio.pipeline.config)
            with gr.Column(scale=5, min_width=320, elem_id="work"), gr.Tabs():
                with gr.Tab("Image", id="image"):
                    _image_tab(studio, reference, text, shared, examples, kind)
                with gr.Tab("Guidance sheet", id="sheet"):
                    _sheet_tab(studio, reference, text, shared, kind)
                with gr.Tab("Story", id="story"):
                    story_tab(studio, reference, shared)
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page


def _settings(own: Mapping[str, Any]) -> list[gr.components.Component]:
    """Return the fields that all tabs share, which start at the model's own settings."""
    guidance, by_image, by_text = (
        gr.Slider(min(1, own[name]), max(6, own[name]), own[name], step=0.1, label=label, info=info)
        for name, label, info in (
            ("guidance_scale", "Guidance", "value of the guidance embedding"),
            ("image_guidance", "Image guidance", "1 is none; costs two passes a step"),
            ("text_guidance", "Text guidance", "1 is none; costs one pass a step"),
        )
    )
    with gr.Row():
        steps = gr.Number(
            own["num_inference_steps"],
            label="Steps",
            precision=0,
            minimum=1,
            maximum=MOST_STEPS,
            min_width=100,
            info="of the sampler",
        )
        seed = gr.Number(
            -1,
            label="Seed",
            precision=0,
            minimum=-1,
            maximum=LARGEST_SEED,
            min_width=100,
            info="-1: random",
            elem_id="seed",
        )
    return [guidance, by_image, by_text, steps, seed]


def _image_tab(
    studio: Studio,
    reference: gr.Image,
    text: str,
    shared: list[gr.components.Component],
    examples: Sequence[Example],
    kind: list[str],
) -> None:
    prompt = gr.Textbox(text, label="Prompt", lines=2, placeholder="this character, ...", elem_id="prompt")
    if studio.miniature:
        unknown = gr.Markdown(_note_on(text), elem_id="unknown")
        prompt.change(_note_on, prompt, unknown, queue=False, show_progress="hidden", api_visibility="private")
    with gr.Row():
        enhance = gr.Checkbox(not studio.miniature, label="Prompt enhancement", info="by a language model", scale=2)
        run = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
    with gr.Row():
        sizes = studio.sizes()
        size = gr.Dropdown(
            sizes, value=sizes[0], label="Size", info="height x width, pixels", min_width=140, elem_id="size"
        )
        count = gr.Slider(
            1, MOST_IMAGES, 1, step=1, label="Images", info="with seeds counted up", min_width=140, elem_id="count"
        )
    with gr.Row(elem_id="results"):
        shown = [
            gr.Image(
                label=label,
                format="png",
                interactive=False,
                elem_id=name,
                elem_classes=kind,
                height=260,
                buttons=["download", "fullscreen"],
            )
            for label, name in (("Reference", "cropped"), ("Reconstructed", "reconstructed"), ("Result", "result"))
        ]
    with gr.Row():
        used_prompt = gr.Textbox(label="Prompt used", interactive=False, scale=4, elem_id="prompt_used")
        used = gr.Number(label="Seed used", interactive=False, precision=0, scale=1, elem_id="seed_used")
    several = gr.Gallery(
        label="All images",
        columns=2,
        format="png",
        visible=False,
        elem_id="several",
        elem_classes=kind,
        object_fit="contain",
        interactive=False,
        buttons=["download", "fullscreen"],
    )
    latest, history = gr.State(None), gr.State([])
    past = gr.Gallery(
        label="History",
        columns=6,
        height=190,
        fit_columns=False,
        allow_preview=False,
        format="png",
        elem_id="history",
        elem_classes=kind,
        object_fit="contain",
        interactive=False,
    )

    @with_messages
    def generate(
        image: str | None,
        text: Any,
        prompt_enhancement: bool,
        guidance: Any,
        image_guidance: Any,
        text_guidance: Any,
        steps: Any,
        seed: Any,
        size: Any = None,
        count: Any = 1,
        progress: Any = gr.Progress(track_tqdm=True),  # noqa: B008  Gradio finds the parameter by this default
    ) -> tuple[Any, ...]:
        """Generate images of a reference's subject from a prompt: the first one, and a list of all."""
        settings = Settings(guidance, image_guidance, text_guidance, steps, seed)
        results = studio.generate(image, text, prompt_enhancement, settings, size, count)
        if results[0].note:
            gr.Info(results[0].note)
        listed = [(served(each.result), f"seed {each.seed}") for each in results]
        gallery = gr.Gallery(listed, visible=len(results) > 1)
        return *_shown(results[0]), gallery, [(each, text, settings) for each in results]

    fields = [reference, prompt, enhance, *shared, size, count]
    outputs = [*shown, used_prompt, used, several, latest]
    event = gr.on(
        [run.click, prompt.submit],
        generate,
        fields,
        outputs,
        api_name="generate",
        concurrency_id="model",
        scroll_to_output=False,
        show_progress_on=shown[-1],  # one bar, not one on every field
    )
    event.success(_remembered, [latest, history], [history, past], api_visibility="private", queue=False)
    past.select(
        _recalled, [history], [*shown, used_prompt, used, prompt, *shared], api_visibility="private", queue=False
    )
    if examples:
        gr.Examples([list(example) for example in examples], [reference, prompt], label="Try")


Entry = tuple[GeneratedImage, str, Settings]
"""An image in the history: itself, the prompt as it was typed, and the fields."""


def _shown(image: GeneratedImage) -> list[Any]:
    """Return the values of a result's fields: its three images, the prompt used, its seed."""
    files = [served(each) for each in (image.reference, image.reconstructed, image.result)]
    return [*files, image.prompt, image.seed]


def _note_on(text: str) -> str:
    """Return what the page says of a prompt's words that the miniature does not know; "" where it knows all."""
    unknown = unknown_words(text or "")
    return f"The miniature does not know: {', '.join(unknown)}. See the examples for its words." if unknown else ""


def _remembered(latest: list[Entry], history: list[Entry]) -> tuple[list[Entry], list[tuple[str | None, str]]]:
    history = [*latest, *history][:REMEMBERED]
    return history, [(served(image.result), f"seed {image.seed}") for image, _, _ in history]


def _recalled(history: list[Entry], event: gr.SelectData) -> list[Any]:
    """Return an image of the history with its fields, and the seed that generates it again."""
    image, text, settings = history[event.index]
    again = [settings.guidance, settings.image_guidance, settings.text_guidance, settings.steps, image.seed]
    return [*_shown(image), text, *again]


def _sheet_tab(
    studio: Studio, reference: gr.Image, text: str, shared: list[gr.components.Component], kind: list[str]
) -> None:
    gr.Markdown("One noise under several guidances: image guidance *i* down, text guidance *t* across.")
    prompt = gr.Textbox(text, label="Prompt", lines=2, placeholder="this character, ...")
    with gr.Row():
        down, across = (
            gr.CheckboxGroup(list(GUIDANCES), value=chosen, label=label, min_width=140, elem_id=name)
            for label, name, chosen in zip(
                ("Image guidances", "Text guidances"), ("down", "across"), sheet_of(DEFAULT_SHEET), strict=True
            )
        )
    run = gr.Button("Generate the sheet", variant="primary", elem_id="generate_sheet")
    result = gr.Image(
        label="Sheet", format="png", interactive=False, elem_id="sheet", buttons=["download", "fullscreen"]
    )
    used = gr.Number(label="Seed used", interactive=False, precision=0)

    @with_messages
    def sheet(
        image: str | None,
        text: str,
        image_guidances: Any,
        text_guidances: Any,
        guidance: Any,
        steps: Any,
        seed: Any,
        progress: Any = gr.Progress(track_tqdm=True),  # noqa: B008
    ) -> tuple[str | None, int]:
        """Generate a contact sheet over image and text guidances, all from one noise."""
        settings = Settings(guidance, 1.0, 1.0, steps, seed)
        result_sheet, chosen = studio.sheet(image, text, image_guidances, text_guidances, settings)
        return served(result_sheet), chosen

    guidance, _, _, steps, seed = shared
    run.click(
        sheet,
        [reference, prompt, down, across, guidance, steps, seed],
        [result, used],
        api_name="sheet",
        concurrency_id="model",
        show_progress_on=result,
    )
