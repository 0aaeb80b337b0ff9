"""The report of runs that are finished, going on, or strange; and the charts in it."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from ray_sr.data.pairs import LeftOut
from ray_sr.errors import InputError, RaySRError, ResourceError
from ray_sr.evaluation import Evaluation, ImageResult
from ray_sr.losses import AdversarialLoss
from ray_sr.publishing.charts import Boundary, Chart, Level, Series, moving_average, short_number, thinned
from ray_sr.publishing.notes import EQUILIBRIUM
from ray_sr.publishing.report import ExtraSection, Picture, duration, write_report
from ray_sr.publishing.training_curves import draw_training
from ray_sr.recipes.losses import AdversarialSpec
from ray_sr.recipes.training import OptimizerSpec, ScheduleSpec, TrainingSpec
from ray_sr.training.compute import Compute
from ray_sr.training.optimizer import GuardedOptimizer
from ray_sr.training.runs import Run
from ray_sr.training.steps import GanStep, MicroBatch
from tests.image_files import GIF, JPEG, PNG
from tests.synthetic_run import BICUBIC, GAN, PRETRAIN, RECIPE, synthetic_run

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page, checks that its elements are closed in order, and keeps what tests look at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attrs.get(name) or "" for found, attrs in self.tags if found == tag]

    def pictures(self) -> list[bytes]:
        return [base64.b64decode(source.partition("base64,")[2]) for source in self.attributes("img", "src")]


def evaluation(pictures: dict[str, Path] | None = None) -> Evaluation:
    ours = {"psnr_y": 28.25, "ssim_y": 0.81, "psnr_rgb": 27.0, "ssim_rgb": 0.79}
    theirs = {"psnr_y": 27.5, "ssim_y": 0.82, "psnr_rgb": 26.0, "ssim_rgb": 0.78}
    left_out = [LeftOut("<b>bad</b>.png", "the file is empty")]
    images = [ImageResult("a<i>.png", ours, theirs)]
    return Evaluation("srgan@1234", 4, "float32", "8-bit & border 4", images, left_out, pictures or {})


class TestWholeRun:
    def test_is_one_file_without_scripts_or_references(self, tmp_path: Path) -> None:
        path = write_report(synthetic_run(tmp_path / "run"))
        assert path == tmp_path / "run" / "report.html"
        page = Page(path)
        assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
        assert not re.search(r"https?:|url\(|@import", path.read_text(encoding="utf-8"))
        assert all(source.startswith("data:image/png;base64,") for source in page.attributes("img", "src"))
        assert "prefers-color-scheme: dark" in path.read_text(encoding="utf-8")

    def test_says_where_the_run_stands(self, tmp_path: Path) -> None:
        run = synthetic_run(tmp_path / "run")
        text = Page(write_report(run)).text
        last, before = (run.records("validation")[place] for place in (-1, PRETRAIN // 50 - 1))
        assert before["step"] == PRETRAIN
        gain = last["psnr_y"] - BICUBIC["bicubic_psnr_y"]
        assert f"{last['psnr_y']:.2f} dB after 600 steps, {gain:.2f} dB above bicubic (26.42 dB)" in text
        assert f"Pre-training ended at {before['psnr_y']:.2f} dB" in text
        assert f"lowered PSNR by {before['psnr_y'] - last['psnr_y']:.2f} dB" in text
        assert f"{PRETRAIN / 3.2 + GAN / 1.4 - 240:.0f} s" in text  # 4 min and these seconds
        for fact in ("torch 2.15.0", "Ray 2.60.0", "demo/shards", "5eed", "42, kept in memory", "CPU, float32"):
            assert fact in text

    def test_shows_curves_with_their_marks(self, tmp_path: Path) -> None:
        text = Page(write_report(synthetic_run(tmp_path / "run"))).text
        for words in (
            "0.693 = ln 2: real and generated look alike",
            "bicubic 26.42 dB",
            "GAN stage",
            "perceptual random",
            "adversarial",
            "generated recognised",
            "Learning rate of the generator",
        ):
            assert words in text

    def test_shows_first_and_last_sample_and_some_between(self, tmp_path: Path) -> None:
        run = synthetic_run(tmp_path / "run")
        page = Page(write_report(run))
        files = sorted(run.samples.iterdir())
        shown = page.pictures()
        assert len(shown) == 5
        assert shown[0] == files[-1].read_bytes()
        assert shown[1] == files[0].read_bytes()
        assert set(shown) <= {file.read_bytes() for file in files}
        assert "Step 600: input, output, original" in page.text

    def test_holds_the_recipe(self, tmp_path: Path) -> None:
        run = synthetic_run(tmp_path / "run")
        html = write_report(run).read_text(encoding="utf-8")
        assert "<summary>Recipe" in html
        for line in run.recipe_file.read_text(encoding="utf-8").splitlines():
            assert line in unescape(html)

    def test_evaluations_and_further_sections(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(PNG)
        sections = [ExtraSection("Endpoint <1>", "First & one.\n\nSecond.", [Picture("from <it>", JPEG)])]
        found = {"Held out": evaluation({"a": tmp_path / "a.png"})}
        page = Page(write_report(synthetic_run(tmp_path / "run"), evaluations=found, extra=sections))
        words = ("Held out", "28.25", "27.50", "0.8100", "mean", "8-bit & border 4", "the file is empty")
        for text in (*words, "a<i>.png", "Left out: <b>bad</b>.png", "Endpoint <1>", "First & one.", "from <it>"):
            assert text in page.text
        assert page.pictures()[-2:] == [PNG, JPEG]
        assert page.attributes("td", "class")[:4] == ["better", "base", "", "base"]  # better PSNR, worse SSIM

    def test_goes_where_it_is_told(self, tmp_path: Path) -> None:
        path = write_report(synthetic_run(tmp_path / "run"), tmp_path / "new" / "page.html")
        assert path == tmp_path / "new" / "page.html"
        assert [file.name for file in path.parent.iterdir()] == ["page.html"]


class TestUnfinishedRun:
    def test_before_the_first_record(self, tmp_path: Path) -> None:
        run = synthetic_run(tmp_path / "run", until=0)
        run.journal.unlink()
        run.facts_file.unlink()
        run.samples.rmdir()
        page = Page(write_report(run))
        assert "Nothing has been measured" in page.text
        assert "of 600: 0%" in page.text
        assert "svg" not in {tag for tag, _ in page.tags}

    def test_before_the_first_validation(self, tmp_path: Path) -> None:
        page = Page(write_report(synthetic_run(tmp_path / "run", until=30)))
        assert "of 600: 5% when this was written" in page.text
        assert "No validation yet" in page.text
        assert "look alike" not in page.text
        assert "Generator loss and its terms" in page.text

    def test_files_cut_off_while_being_written(self, tmp_path: Path) -> None:
        run = synthetic_run(tmp_path / "run", until=100)
        with run.journal.open("a", encoding="utf-8") as stream:
            stream.write('{"event": "train", "st')
        (run.samples / "00000150.png").write_bytes(b"")
        (run.samples / "notes.png").write_bytes(PNG)
        page = Page(write_report(run))
        assert "of 600: 17%" in page.text
        assert len(page.pictures()) == 2

    def test_values_that_are_not_finite(self, tmp_path: Path) -> None:
        changed = {"d_loss": math.nan, "d_accuracy_real": math.nan, "g_total": math.inf, "bad_steps": 3.0}
        html = write_report(synthetic_run(tmp_path / "run", **changed)).read_text(encoding="utf-8")
        assert "3 steps had a gradient that was not finite" in html
        assert not re.search(r"[\" ,](nan|inf)[\" ,%]", html)

    def test_a_folder_without_a_run(self, tmp_path: Path) -> None:
        with pytest.raises(RaySRError, match=r"recipe\.yaml"):
            write_report(Run.at(tmp_path))

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        run = synthetic_run(tmp_path / "run")
        (tmp_path / "taken").mkdir()
        with pytest.raises(ResourceError, match="taken"):
            write_report(run, tmp_path / "taken")
        with pytest.raises(ResourceError, match=r"recipe\.yaml"):
            write_report(run, run.recipe_file / "report.html")
        assert list((tmp_path / "taken").iterdir()) == []


class TestNotes:
    @pytest.mark.parametrize(
        ("real", "fake", "words"),
        [
            (0.99, 0.98, "The discriminator dominates: it recognised 99% of the real and 98%"),
            (0.52, 0.47, "The discriminator is undecided"),
            (0.99, 0.10, "calls most crops real"),
            (0.30, 0.97, "calls most crops generated"),
            (0.80, 0.70, "are in balance"),
        ],
    )
    def test_what_the_discriminator_does(self, tmp_path: Path, real: float, fake: float, words: str) -> None:
        run = synthetic_run(tmp_path / "run", d_accuracy_real=real, d_accuracy_fake=fake)
        assert words in Page(write_report(run)).text

    def test_a_wasserstein_critic_is_not_blamed_for_winning(self, tmp_path: Path) -> None:
        recipe = RECIPE.replace(
            "  steps: 200", "  steps: 200\n  adversarial: {kind: wasserstein, weight_clip: 0.01}"
        )
        run = synthetic_run(tmp_path / "run", recipe=recipe, d_accuracy_real=1.0, d_accuracy_fake=1.0)
        text = Page(write_report(run)).text
        assert "dominates" not in text
        assert "0: real and generated look alike" in text

    def test_untrained_features_are_said_only_where_used(self, tmp_path: Path) -> None:
        assert "untrained network" in Page(write_report(synthetic_run(tmp_path / "random"))).text
        vgg = synthetic_run(tmp_path / "vgg", recipe=RECIPE.replace("network: random", "network: vgg19"))
        assert "untrained network" not in Page(write_report(vgg)).text

    def test_resumed_short_and_waiting(self, tmp_path: Path) -> None:
        run = synthetic_run(tmp_path / "run", data_wait=0.9)
        with run.journal.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": "start", "step": 1200, "world": 2, "compute": "CPU"}) + "\n")
        text = Page(write_report(run)).text
        assert "resumed at step 1,200" in text
        assert "waited for data" in text
        assert "short run of 600 steps" in text

    def test_a_long_run_that_is_below_bicubic(self, tmp_path: Path) -> None:
        long = RECIPE.replace(f"steps: {PRETRAIN}", "steps: 900000")
        text = Page(write_report(synthetic_run(tmp_path / "run", until=50, recipe=long))).text
        assert "dB below bicubic" in text
        assert "still below bicubic" in text
        assert "short run" not in text

    def test_deblurring_is_compared_with_its_input(self, tmp_path: Path) -> None:
        recipe = """
        name: sharp
        scale: 1
        degradation: [{kind: motion_blur}]
        generator: {kind: compact, convs: 2}
        pretrain: {steps: 600}
        """
        text = Page(write_report(synthetic_run(tmp_path / "run", until=100, recipe=recipe))).text
        assert "dB below the input (26.42 dB)" in text
        assert "bicubic" not in text.split("Recipe, every default")[0]


class TestEscaping:
    def test_no_text_becomes_markup(self, tmp_path: Path) -> None:
        evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
        recipe = RECIPE.replace("A small SRGAN", f"{evil} A small SRGAN")
        run = synthetic_run(tmp_path / "run", recipe=recipe)
        facts = {"shards": evil, "torch": evil}
        run.facts_file.write_text(json.dumps(facts), encoding="utf-8")
        sections = [ExtraSection(evil, evil, [Picture(evil, PNG)])]
        page = Page(write_report(run, evaluations={evil: evaluation()}, extra=sections))
        assert "script" not in {tag for tag, _ in page.tags}
        assert not any("onerror" in attrs for _, attrs in page.tags)
        assert page.text.count("alert(1)") >= 5

    def test_only_pictures_that_browsers_show(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="PNG"):
            Picture("animation", GIF)
        with pytest.raises(InputError, match="gone"):
            Picture.of(tmp_path / "gone.png")


class TestEquilibrium:
    @pytest.mark.parametrize("kind", ["bce", "lsgan", "hinge", "wasserstein", "relativistic"])
    def test_is_the_least_loss_of_a_discriminator_that_gives_one_answer(self, kind: str) -> None:
        loss = AdversarialLoss(AdversarialSpec.model_validate({"kind": kind}))
        answers = [torch.full((4, 1), value) for value in torch.linspace(-2, 2, 401).tolist()]
        totals = [float(loss.real_loss(answer, answer) + loss.fake_loss(answer, answer)) for answer in answers]
        assert min(totals) == pytest.approx(EQUILIBRIUM[kind], abs=1e-4)

    def test_is_what_training_logs_as_the_discriminators_loss(self) -> None:
        class Undecided(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.factor = nn.Parameter(torch.zeros(()))

            def forward(self, photos: torch.Tensor) -> torch.Tensor:
                return photos.mean((1, 2, 3))[:, None] * self.factor

        generator, critic = nn.Conv2d(3, 3, 1), Undecided()
        optimizers = [
            GuardedOptimizer(list(m.parameters()), OptimizerSpec(), ScheduleSpec(), 1) for m in (generator, critic)
        ]
        compute = Compute.of(TrainingSpec(precision="fp32"), torch.device("cpu"))
        step = GanStep(generator, critic, *optimizers, [], AdversarialSpec(), compute)
        photos = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        logged = step.run([MicroBatch(photos, photos)], 0)
        assert float(logged["d_loss"]) == pytest.approx(EQUILIBRIUM["bce"], abs=1e-6)


def _points(path: str) -> list[tuple[float, float]]:
    """The corners of an SVG path of straight lines."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)]


class TestCharts:
    @staticmethod
    def places(svg: str) -> list[list[tuple[float, float]]]:
        """The points of each curve, in pixels."""
        return [_points(path) for path in re.findall(r'class="curve">\s*<path d="([^"]*)"', svg)]

    def test_a_level_lies_where_a_curve_of_its_value_lies(self) -> None:
        curve = Series("loss", [[(0, 0.0), (50, 0.693), (100, 2.0)]], 1)
        svg = Chart("loss", [curve], [Level(0.693, "ln 2")]).svg()
        level = _points(re.search(r'class="level">\s*<path d="([^"]*)"', svg).group(1))[0][1]  # type: ignore[union-attr]
        (points,) = self.places(svg)
        assert level == pytest.approx(points[1][1], abs=0.11)
        assert "ln 2" not in svg, "the legend names it: a name on the drawing may lie over a curve"
        assert points[0][1] > points[1][1] > points[2][1]
        assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2, abs=0.11)

    def test_a_logarithmic_axis_only_for_wide_positive_values(self) -> None:
        wide = Chart("", [Series("a", [[(0, 0.01), (1, 0.1), (2, 1.0)]], 1)], log=True).svg()
        (points,) = self.places(wide)
        assert points[0][1] - points[1][1] == pytest.approx(points[1][1] - points[2][1], abs=0.2)
        negative = Chart("", [Series("a", [[(0, -1.0), (1, 0.0), (2, 100.0)]], 1)], log=True).svg()
        (points,) = self.places(negative)
        assert points[0][1] - points[1][1] < points[1][1] - points[2][1]

    def test_boundary_outside_of_the_steps_is_not_drawn(self) -> None:
        series = [Series("a", [[(0, 1.0), (10, 2.0)]], 1)]
        assert "stage" not in Chart("", series, (), [Boundary(400, "stage")]).svg()
        assert "stage" in Chart("", series, (), [Boundary(5, "stage")]).svg()

    @pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-9, 1e12])
    def test_constant_and_single_values(self, value: float) -> None:
        constant = Chart("", [Series("a", [[(1, value), (2, value)]], 1)], log=True).svg()
        single = Chart("", [Series("a", [[(7, value)]], 1)]).svg()
        for svg in (constant, single):
            assert all(0 <= y <= 290 for curve in self.places(svg) for _, y in curve)
        assert re.search(rf'class="dot">\s*<title>step 7: a {re.escape(f"{value:.4g}")}</title>', single)

    def test_drawings_have_no_colour_name_or_reference_of_their_own(self) -> None:
        curve = Series("<a> & $x^2$", [[(0, 1.0), (50, 2.0)]], 1, dots=True)
        chart = Chart("<b>", [curve], [Level(1.5, "<c>")], [Boundary(20, "<d> $x$")], unit="<e>")
        svg = chart.svg()
        assert not re.search(r"#[0-9a-f]{6}\b|https?:|url\(|<style|<metadata|clip", svg)
        style = (files("ray_sr") / "publishing" / "report.css").read_text(encoding="utf-8")
        assert {f"--{name}:" for name in re.findall(r"var\(--([\w-]+)\)", svg)} <= set(
            re.findall(r"--[\w-]+:", style)
        )
        ids = re.findall(r' id="([^"]*)"', svg)
        assert len(ids) == len(set(ids)) > 0
        assert set(re.findall(r'href="#([^"]*)"', svg)) == set(ids)
        assert not set(ids) & set(re.findall(r' id="([^"]*)"', Chart("other", [curve]).svg()))
        for text in ("&lt;d&gt; $x$", "&lt;e&gt;", "&lt;a&gt; &amp; $x^2$ 2 &lt;e&gt;"):
            assert text in svg
        assert svg == chart.svg()

    def test_picture_for_the_card(self, tmp_path: Path) -> None:
        whole = Image.open(io.BytesIO(draw_training(synthetic_run(tmp_path / "a")) or b""))
        loss = Image.open(io.BytesIO(draw_training(synthetic_run(tmp_path / "b", until=30)) or b""))
        assert whole.format == "PNG"
        assert whole.width == 2 * loss.width
        assert draw_training(synthetic_run(tmp_path / "c", until=0)) is None

    def test_nothing_finite_gives_no_chart(self) -> None:
        assert Chart("", [Series("a", [[(1, math.nan)]], 1), Series("b", [], 2)]).svg() == ""

    def test_long_curves_are_thinned_to_means(self) -> None:
        points = [(float(step), float(step % 7)) for step in range(20_000)]
        short = thinned(points)
        assert len(short) <= 400
        assert short[0][1] == pytest.approx(3, abs=0.2)
        assert len(Chart("", [Series("a", [points], 1)]).svg()) < 20_000

    def test_moving_average_keeps_ends_and_straight_lines(self) -> None:
        line = [(float(step), 2.0 * step) for step in range(90)]
        assert [value for _, value in moving_average(line)] == pytest.approx([value for _, value in line])
        noisy = [(float(step), float(step % 2)) for step in range(300)]
        assert all(abs(value - 0.5) < 0.1 for _, value in moving_average(noisy)[20:-20])
        assert moving_average(noisy)[0] == noisy[0]

    def test_numbers_for_people(self) -> None:
        assert [short_number(value) for value in (0, 250, 1500, 2e6)] == ["0", "250", "1.5k", "2M"]
        assert [duration(value) for value in (12.4, 250, 11_100)] == ["12 s", "4 min 10 s", "3 h 05 min"]
