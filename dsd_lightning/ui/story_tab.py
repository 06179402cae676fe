"""Lays out the tab for stories."""

from __future__ import annotations

from typing import Any

import gradio as gr

from dsd_lightning.generation.story.arguments import FEWEST, MOST, USUAL
from dsd_lightning.ui.error_messages import with_messages
from dsd_lightning.ui.files import served
from dsd_lightning.ui.studio import Settings, Studio


def story_tab(studio: Studio, reference: gr.Image, shared: list[gr.components.Component]) -> None:
    """Lay out the tab.

    Args:
        studio: the model behind the page.
        reference: the page's reference, which is the first panel.
        shared: the page's fields of guidances, steps and seed, in this order.
    """
    gr.Markdown(
        "The reference is the first panel. Write the story, change what you like in the table, then generate the page."
    )
    with gr.Row():
        idea = gr.Textbox(label="Idea", placeholder="what it is about; the page's title", scale=3)
        panels = gr.Slider(FEWEST, MOST, USUAL, step=1, label="Panels", scale=2)
    with gr.Row():
        write = gr.Button("1. Write the story", elem_id="write_story")
        generate = gr.Button("2. Generate the page", variant="primary", elem_id="generate_story")
    table = gr.Dataframe(
        headers=["caption", "prompt", "seed"],
        datatype=["str", "str", "number"],
        type="array",
        interactive=True,
        column_count=3,
        wrap=True,
        label="Panels",
        max_height=420,
        column_widths=["38%", "48%", "14%"],
        elem_id="panels",
    )
    result = gr.Image(label="Page", format="png", interactive=False, elem_id="page", buttons=["download", "fullscreen"])

    @with_messages
    def write_story(image: str | None, idea: str, panels: Any, seed: Any) -> list[list[Any]]:
        """Write captions and prompts of a story whose first panel is the image."""
        story = studio.write_story(image, idea, panels, seed)
        return [[panel.caption, panel.prompt, panel.seed] for panel in story.panels]

    @with_messages
    def generate_story(
        image: str | None,
        idea: str,
        table: list[list[Any]],
        guidance: Any,
        image_guidance: Any,
        text_guidance: Any,
        steps: Any,
        progress: Any = gr.Progress(track_tqdm=True),  # noqa: B008
    ) -> str | None:
        """Generate the panels of a table of captions, prompts and seeds, and lay them out as a page."""
        rows = [row for row in table if any(str(cell or "").strip() for cell in row)]
        settings = Settings(guidance, image_guidance, text_guidance, steps, 0)
        return served(studio.generate_story(image, idea, rows, settings))

    write.click(
        write_story, [reference, idea, panels, shared[-1]], [table], api_name="write_story", concurrency_id="model"
    )
    fields = [reference, idea, table, *shared[:-1]]
    generate.click(generate_story, fields, [result], api_name="generate_story", concurrency_id="model")
