"""The pages lead where they say: links, files and the names on the walks of docs/design.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
WALKS = {
    "ray_sr/degradations/__init__.py": ["def degrade(", "def _apply("],
    "ray_sr/degradations/resizing.py": ["def shrink("],
    "ray_sr/images/resample.py": ["def downscale("],
    "ray_sr/training/steps.py": ["class GanStep", "def _pull_generator(", "self.adversarial.generator_loss("],
    "ray_sr/losses.py": ["class AdversarialLoss", "def generator_loss(", "def real_loss(", "def fake_loss("],
    "ray_sr/serving/admission.py": ["class AdmissionQueue", "def place(", 'Problem("overloaded"'],
    "ray_sr/serving/problems.py": ['"overloaded": (503'],
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    absent = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not absent


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in index]


@pytest.mark.parametrize("file", WALKS)
def test_the_walks_of_the_design_lead_there(file: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    assert not [name for name in WALKS[file] if name not in text]
    assert Path(file).name in (ROOT / "docs" / "design.md").read_text("utf-8")
