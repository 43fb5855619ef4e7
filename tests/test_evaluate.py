"""The verb `eval`: from a snapshot to a score with its protocol, yardstick and warnings."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gantool import evaluate as evaluation
from gantool import models
from gantool.config.evaluation import EvalConfig
from gantool.config.schema import RunConfig
from gantool.data.image_sets import ImageSet, packed_set
from gantool.data.pack import ensure_packed, open_packed
from gantool.errors import GantoolError, UsageError
from gantool.evaluate import Score, score_rows
from gantool.metrics import classifier, kernel, neighbours, table
from gantool.metrics.classifier import open_classifier
from gantool.metrics.collection import Work
from gantool.metrics.inception import FILE_NAMES
from gantool.metrics.moments import inception_score
from gantool.metrics.reference import Reference
from gantool.metrics.scores import write_score
from gantool.metrics.statistics import Statistics
from gantool.progress import Silent
from gantool.sample import Snapshot, generate

CPU = torch.device("cpu")
SETTINGS = EvalConfig(num=200)


class Counted(Silent):
    """Remembers which activities there were."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def step(self, what: str, done: int, total: int | None, detail: str = "", left: float | None = None) -> None:
        if done == total:
            self.done.append(what)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed data of 10,000 + 2,000 images of 8x8 pixels, and what evaluations leave beside them."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module", autouse=True)
def _short_training() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "MOST_IMAGES", 6000)
        yield


@pytest.fixture(scope="module")
def snapshot(folder: Path) -> Snapshot:
    """An untrained generator of the data in `folder`."""
    config = RunConfig.model_validate(
        {"data": {"name": "shapes", "size": 8}, "generator": {"kind": "conv", "latent_dim": 8, "width": 4}}
    )
    data = ensure_packed(config.data, folder, Silent())
    torch.manual_seed(0)
    generator = models.build_generator(config).eval()
    facts = {"digest": data.digest, "title": data.title, "classes": list(data.classes), "image_shape": [8, 8, 3]}
    return Snapshot(Path("runs/x/snapshots/step-00000070.safetensors"), 70, "5" * 64, config, facts, True, generator)


def evaluate(snapshot: Snapshot, settings: EvalConfig, folder: Path, seed: int, progress: Silent, **more: Any) -> Score:
    found = evaluation.evaluate(snapshot, settings, folder, seed, Work(progress), **more)
    assert found is not None
    return found.score


@pytest.fixture(scope="module")
def score(snapshot: Snapshot, folder: Path) -> Score:
    return evaluate(snapshot, SETTINGS, folder, 3, Silent())


def test_a_score_says_all_about_itself(score: Score, snapshot: Snapshot, folder: Path) -> None:
    data = open_packed(snapshot.config.data, folder)
    assert set(score.values) == {"fid", "is", "is_std"}
    weights = score.extractor_digest[:8]
    fid, inception = score.protocol["fid"], score.protocol["is"]
    assert fid == (
        f"fid|classifier-{classifier.RECIPE}|u8|mean-128|w={weights}|n=200/10000"
        f"|ref=shapes:train:{data.digest[:8]}|ddof1"
    )
    assert inception.startswith("is|classifier-")
    assert inception.endswith(f"logits-10|w={weights}|n=200|splits=10|shuffle=2020")
    assert (score.step, score.seed, score.num, score.ema, score.device) == (70, 3, 200, True, "cpu")
    assert (score.data_title, score.data_digest, score.snapshot_digest) == ("shapes", data.digest, "5" * 64)
    assert (
        set(score.versions) - {"image"} == {"gantool", "commit", "torch", "torchvision", "numpy", "scipy", "python"}
        and score.seconds > 0
    )
    assert any("FID of 200 images is biased" in text for text in score.warnings)
    assert Score.model_validate_json(json.dumps(score.to_json())) == score


def test_values_are_those_of_the_generated_images(score: Score, snapshot: Snapshot, folder: Path) -> None:
    """The same numbers from all features at once, by textbook formulas."""
    data = open_packed(snapshot.config.data, folder)
    extractor = open_classifier(data, folder, CPU, Silent())
    fake = extractor(torch.cat(list(generate(snapshot, 0, 200, 3))))
    real = extractor(torch.from_numpy(np.array(data.split("train")[0]))).pooled.double().numpy()
    pooled = fake.pooled.double().numpy()
    a, b = np.cov(pooled, rowvar=False), np.cov(real, rowvar=False)
    roots = np.sqrt(np.clip(np.linalg.eigvals(a @ b).real, 0, None)).sum()
    expected = ((pooled.mean(0) - real.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * roots
    assert score.values["fid"] == pytest.approx(expected, rel=1e-3)
    assert (score.values["is"], score.values["is_std"]) == inception_score(fake.logits.numpy())


def test_real_test_images_are_the_yardstick(score: Score) -> None:
    assert score.real is not None and score.real_protocol is not None
    assert score.real["fid"] < score.values["fid"] / 20
    assert score.real["is"] > score.values["is"]
    assert score.real_protocol == score.protocol  # as many test images as generated ones


def test_evaluating_again_gives_the_same_numbers_without_the_preparations(
    score: Score, snapshot: Snapshot, folder: Path
) -> None:
    progress = Counted()
    again = evaluate(snapshot, SETTINGS, folder, 3, progress)
    assert again.model_copy(update={"seconds": score.seconds}) == score
    scoring = ["features of the generated images", "scores from features", "scores from features"]
    assert progress.done == ["checking the data (MB)", *scoring]
    assert evaluate(snapshot, SETTINGS, folder, 4, Silent()).values["fid"] != score.values["fid"]


def test_the_yardstick_is_computed_once(snapshot: Snapshot, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    honest = table.METRICS["kid"]

    def values(scored: Statistics, reference: Statistics, *more: Any) -> dict[str, float]:
        asked.append((scored.count, reference.count))
        return honest.values(scored, reference, *more)

    monkeypatch.setitem(table.METRICS, "kid", honest._replace(values=values))
    settings = EvalConfig(num=50, metrics=("kid",))
    scores = [evaluate(snapshot, settings, folder, seed, Silent()) for seed in (0, 1)]
    assert len(asked) == 3 and scores[0].real == scores[1].real and scores[0].values != scores[1].values
    kept = [path for path in (folder / "metrics").glob("real-*.json") if '"kid"' in path.read_text()]
    assert len(kept) == 1
    text = kept[0].read_text()
    kept[0].write_text(text.replace('"kid": ', '"kid": 1'))  # damaged: is seen, and computed again
    assert evaluate(snapshot, settings, folder, 0, Silent()).real == scores[0].real and len(asked) == 5
    assert kept[0].read_text() == text
    evaluate(snapshot, EvalConfig(num=51, metrics=("kid",)), folder, 0, Silent())
    assert len(asked) == 7  # another number of images has another yardstick


class _Counts(Silent):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None, str]] = []

    def step(self, what: str, done: int, total: int | None, detail: str = "", left: float | None = None) -> None:
        if what == "scores from features":
            self.seen.append((done, total, detail))


def test_long_metrics_tell_how_far_they_are(snapshot: Snapshot, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 32)
    progress = _Counts()
    evaluate(snapshot, EvalConfig(num=70, metrics=("kid", "density_coverage")), folder, 5, progress)
    done = [percent for percent, _, _ in progress.seen]
    half = done.index(200)  # then the yardstick
    assert done[: half + 1] == sorted(done[: half + 1]) and {total for _, total, _ in progress.seen} == {200}
    assert {name for _, _, name in progress.seen} == {"kid", "density_coverage", ""}
    assert len(set(done)) > 20


def test_the_parts_of_long_metrics_are_counted_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 100)
    rng = torch.Generator().manual_seed(0)
    sides = torch.randn(300, 4, generator=rng), torch.randn(450, 4, generator=rng)
    told: list[int] = []

    def count() -> int:
        found = len(told)
        told.clear()
        return found

    kernel.kid_subsets(*sides, 7, 20, told=lambda: told.append(1))
    kernel.kid_unbiased(*sides, 100, told=lambda: told.append(1))
    assert count() == kernel.num_parts(300, 450, 7, 100)
    neighbours.precision_recall(*sides, 3, 100, lambda: told.append(1))
    assert count() == neighbours.num_blocks(300, 450)[0]
    neighbours.density_coverage(*sides, 5, 100, lambda: told.append(1))
    assert count() == neighbours.num_blocks(300, 450)[1]


def test_only_the_metrics_that_were_asked_for(snapshot: Snapshot, folder: Path) -> None:
    fid = evaluate(snapshot, EvalConfig(num=64, metrics=("fid",)), folder, 0, Silent())
    assert set(fid.values) == set(fid.protocol) == {"fid"} and fid.real is not None and set(fid.real) == {"fid"}
    inception = evaluate(snapshot, EvalConfig(num=2, metrics=("is",)), folder, 0, Silent())
    assert set(inception.values) == {"is", "is_std"} and not inception.warnings
    assert "n=2|splits=2|" in inception.protocol["is"]


class Constant(nn.Module):
    """A generator that has collapsed to one image."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.25))

    def forward(self, z: Tensor) -> Tensor:
        return self.level.expand(len(z), 3, 8, 8)


def test_a_collapsed_generator_gets_an_honest_number_and_a_warning(snapshot: Snapshot, folder: Path) -> None:
    found = evaluate(dataclasses.replace(snapshot, generator=Constant()), EvalConfig(num=50), folder, 0, Silent())
    assert math.isfinite(found.values["fid"]) and found.real is not None
    assert found.values["fid"] > 5 * found.real["fid"]
    assert (found.values["is"], found.values["is_std"]) == pytest.approx((1.0, 0.0), abs=1e-9)
    assert "all 50 images are the same to the extractor: the generator has collapsed" in found.warnings
    text = " ".join(found.warnings)
    assert "more than 128 are needed for the covariance" in text


def test_weights_that_are_not_numbers_are_an_error(snapshot: Snapshot, folder: Path) -> None:
    broken = Constant()
    broken.level.data.fill_(float("nan"))
    with pytest.raises(GantoolError, match=r"step-00000070.safetensors: weights of the generator are NaN.*level"):
        evaluate(dataclasses.replace(snapshot, generator=broken), SETTINGS, folder, 0, Silent())


def test_other_data_than_the_snapshots_are_refused(snapshot: Snapshot, folder: Path) -> None:
    other = dataclasses.replace(snapshot, data=snapshot.data | {"digest": "a" * 64})
    with pytest.raises(UsageError, match=r"not the data of .*step-00000070.*expected shapes with digest aaaaaaaaaaaa"):
        evaluate(other, SETTINGS, folder, 0, Silent())


def test_without_a_test_split_there_is_no_yardstick(
    snapshot: Snapshot, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_packed(snapshot.config.data, folder)
    bare = dataclasses.replace(data, splits={"train": data.splits["train"]})
    monkeypatch.setattr(evaluation, "ensure_packed", lambda *_: bare)
    found = evaluate(snapshot, EvalConfig(num=64), folder, 0, Silent())
    assert found.real is None and found.real_protocol is None and found.values["fid"] > 0


def test_inception_without_weights_fails_before_any_work(
    snapshot: Snapshot, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("GANTOOL_WEIGHTS", raising=False)
    progress = Counted()
    settings = EvalConfig(num=10, extractor="inception")
    with pytest.raises(UsageError, match=FILE_NAMES[0]):
        evaluate(snapshot, settings, folder, 0, progress)
    with pytest.raises(UsageError, match="--weights: no Inception weights"):
        evaluate(snapshot, settings, folder, 0, progress, weights=tmp_path / "none.pth")
    assert set(progress.done) <= {"checking the data (MB)"}


def test_scores_are_written_by_their_identity(score: Score, tmp_path: Path) -> None:
    path = write_score(tmp_path, score)
    assert path.parent == tmp_path / "scores" and path.name.startswith("00000070-classifier-")
    assert Score.model_validate_json(path.read_text()) == score
    assert write_score(tmp_path, score.model_copy(update={"seconds": 1.0})) == path
    for change in ({"seed": 9}, {"snapshot_digest": "6" * 64}, {"protocol": {"fid": "another"}}):
        assert write_score(tmp_path, score.model_copy(update=change)) != path
    assert len(list((tmp_path / "scores").iterdir())) == 4


def test_rows_are_flat_and_have_the_same_columns(score: Score) -> None:
    bare = score.model_copy(update={"real": None, "values": {"is": 2.0, "is_std": 0.1}, "warnings": ()})
    rows = score_rows([score, bare])
    assert list(rows[0]) == list(rows[1])
    assert rows[0]["fid"] == score.values["fid"] and rows[0]["step"] == 70 and rows[0]["extractor"] == "classifier"
    assert score.real is not None and rows[0]["real_fid"] == score.real["fid"]
    assert rows[0]["protocol"] == f"{score.protocol['fid']}; {score.protocol['is']}"
    assert rows[1]["fid"] is None and rows[1]["real_is"] is None and rows[1]["is"] == 2.0
    assert all(value is None or isinstance(value, str | int | float) for row in rows for value in row.values())
    assert score_rows([]) == []


@pytest.fixture(scope="module")
def labelled(folder: Path) -> tuple[Reference, ImageSet]:
    """The data in `folder` as reference, and its 2,000 test images as if a generator had made them."""
    data = ensure_packed(RunConfig.model_validate({"data": {"name": "shapes", "size": 8}}).data, folder, Silent())
    return Reference(packed_set(data, "train", None), data, folder), packed_set(data, "test", None)


def test_the_training_set_is_at_no_distance_from_itself(labelled: tuple[Reference, ImageSet]) -> None:
    reference, _ = labelled
    settings = EvalConfig(metrics=("fid", "is", "kid"), num=reference.images.num)
    found = evaluation.evaluate_images(reference.images, reference, settings, CPU, Work(Silent()))
    assert found is not None and 0 <= found.score.values["fid"] < 1e-6 and found.score.values["is"] > 5
    assert abs(found.score.values["kid_full"]) < 2 * found.score.values["kid_full_error"] + 1e-3
    # There are 2,000 test images only, so the yardstick is one of fewer images: that is all there is to say.
    assert [text for text in found.score.warnings if "test images" not in text] == []


def test_scores_of_each_class_are_those_of_its_images_alone(labelled: tuple[Reference, ImageSet]) -> None:
    reference, images = labelled
    settings = EvalConfig(metrics=("fid", "is"), per_class=True, num=2000)
    found = evaluation.evaluate_images(images, reference, settings, CPU, Work(Silent()))
    assert found is not None and reference.data is not None
    extractor = open_classifier(reference.data, reference.folder, CPU, Silent())
    fake, real = (extractor(one.part(0, one.num)) for one in (images, reference.images))
    for label, name in enumerate(reference.data.classes):
        sides = []
        for features, one in ((fake, images), (real, reference.images)):
            assert one.labels is not None
            sides.append(features.pooled.double().numpy()[one.labels == label])
        means, covariances = [side.mean(0) for side in sides], [np.cov(side.T) for side in sides]
        roots = np.sqrt(np.clip(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None)).sum()
        fid = ((means[0] - means[1]) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * roots
        row = found.score.per_class[name]
        assert row["num"] == len(sides[0]) and row["fid"] == pytest.approx(fid, rel=2e-2, abs=2e-3)
        assert images.labels is not None
        assert row["is"] == inception_score(fake.logits.numpy()[images.labels == label], 1, None)[0]


def test_real_images_are_recognised_and_teach_their_classes(labelled: tuple[Reference, ImageSet]) -> None:
    reference, images = labelled
    settings = EvalConfig(metrics=("classification",), num=2000)
    found = evaluation.evaluate_images(images, reference, settings, CPU, Work(Silent()))
    assert found is not None and images.labels is not None and reference.data is not None
    extractor = open_classifier(reference.data, reference.folder, CPU, Silent())
    right = extractor(images.part(0, images.num)).logits.argmax(1).numpy() == images.labels
    assert found.score.values["accuracy_classifier"] == right.mean()
    assert found.score.values["cas"] > 0.8
    for label, name in enumerate(reference.data.classes):
        assert found.score.per_class[name]["accuracy_classifier"] == right[images.labels == label].mean()
    shuffled = dataclasses.replace(images, labels=np.random.default_rng(0).permutation(images.labels), digest="s")
    worse = evaluation.evaluate_images(shuffled, reference, settings, CPU, Work(Silent()))
    assert worse is not None and worse.score.values["accuracy_classifier"] < 0.2 and worse.score.values["cas"] < 0.3


def test_copies_of_training_images_are_found_wherever_they_come_from(labelled: tuple[Reference, ImageSet]) -> None:
    reference, images = labelled
    settings = EvalConfig(metrics=("overfit",), num=200)
    places = np.arange(200) * 37 + 5
    copies = torch.cat([reference.images.part(i, i + 1) for i in places.tolist()])
    stolen = ImageSet("stolen", "c" * 64, 200, images.shape, lambda start, stop: copies[start:stop])
    fresh = dataclasses.replace(images, num=200, digest="f" * 64)
    authpct = []
    for one in (stolen, fresh):
        found = evaluation.evaluate_images(one, reference, settings, CPU, Work(Silent()))
        assert found is not None and found.nearest is not None
        authpct.append(found.score.values["authpct"])
    assert authpct[0] == 0 and authpct[1] > 20


def test_what_prepare_makes_is_all_that_an_evaluation_lacks(snapshot: Snapshot, folder: Path, tmp_path: Path) -> None:
    settings = EvalConfig(num=150, metrics=("fid", "is", "kid"))
    data_dir = tmp_path / "data"
    shutil.copytree(folder, data_dir, ignore=shutil.ignore_patterns("metrics"))
    evaluation.stage(snapshot.config.data, settings, data_dir, CPU, Work(Silent()))
    progress = Counted()
    evaluate(snapshot, settings, data_dir, 0, progress)
    assert [what for what in progress.done if "features of" in what] == ["features of the generated images"]
    assert not any("classifier" in what for what in progress.done)
