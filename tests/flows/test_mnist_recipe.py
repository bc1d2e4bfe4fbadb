"""The MNIST recipe on made-up digits: 10 x 10 images of ten noisy patterns."""

# N rows, K classes, B images, D pixels, H height, W width.

import gzip
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import override, parse
from stillhouse.core.types import LoopState
from stillhouse.evaluation.evaluate import score_rows
from stillhouse.numerics.divergences import forward_kl
from stillhouse.training.callbacks import max_norm

pytestmark = pytest.mark.slow
SIDE = 10
SMALL = [
    "teacher_hidden=[64,64]", "student_hidden=[32,32]", "jitter=1", "input_dropout=0.2",
    "dropout=0.2",
    "squared_norm=2.2", "teacher.epochs=12", "teacher.batch_size=32", "teacher.lr=3e-3",
    "student.epochs=10", "student.batch_size=32", "student.lr=1e-2", "held_out_rows=200",
]  # fmt: skip


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    path = Path(__file__).parents[2] / "recipes" / "mnist_hinton.py"
    spec = importlib.util.spec_from_file_location("mnist_hinton", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mnist_hinton"] = module
    spec.loader.exec_module(module)
    return module


def made_up(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten coarse patterns, each image one of them under noise that makes some hard to tell."""
    coarse_KHW = np.random.default_rng(7).normal(size=(10, SIDE // 2, SIDE // 2))
    patterns_KHW = coarse_KHW.repeat(2, 1).repeat(2, 2)
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, 10, count).astype(np.uint8)
    noisy_NHW = patterns_KHW[labels_N] + 1.0 * rng.normal(size=(count, SIDE, SIDE))
    return (150 * noisy_NHW).clip(0, 255).astype(np.uint8), labels_N


def write_idx(path: Path, values: np.ndarray) -> None:
    shape = b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + shape + values.tobytes()))


def write_digits(folder: Path, name: str, images_NHW: np.ndarray, labels_N: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    write_idx(folder / f"{name}-images-idx3-ubyte.gz", images_NHW)
    write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels_N)


def settings(recipe: ModuleType, *changes: str) -> Any:
    values = recipe.Settings().model_dump(mode="json")
    return parse(recipe.Settings, override(values, [*SMALL, *changes]))


def run(recipe: ModuleType, folder: Path, out: Path, *changes: str, seeds: int = 1) -> Any:
    absents = [recipe.NO_3, recipe.ONLY_7_8] if seeds == 1 else []
    return recipe.run(
        settings(recipe, *changes), folder, out, seeds=seeds, absents=absents, progress=Silent()
    )


Finished = tuple[Path, Path, Any]


@pytest.fixture(scope="module")
def finished(recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A whole run: its data folder, its own folder, its results."""
    root = tmp_path_factory.mktemp("mnist")
    write_digits(root / "data", "train", *made_up(800, 1))
    write_digits(root / "data", "t10k", *made_up(400, 2))
    return root / "data", root / "run", run(recipe, root / "data", root / "run")


def by_title(results: dict[str, Any], title: str) -> dict[str, Any]:
    (found,) = [row for row in results["rows"] if row["title"] == title]
    return found


# ---- jitter


def shift_by_hand(image_HW: np.ndarray, down: int, right: int) -> np.ndarray:
    out = np.zeros_like(image_HW)
    for y in range(SIDE):
        for x in range(SIDE):
            if 0 <= y + down < SIDE and 0 <= x + right < SIDE:
                out[y + down, x + right] = image_HW[y, x]
    return out


def test_jitter_shifts_each_image_by_at_most_two_pixels_each_way(recipe: ModuleType) -> None:
    images_NHW = np.random.default_rng(0).random((300, SIDE, SIDE)).astype(np.float32)
    images_BD = torch.from_numpy(images_NHW).view(300, -1)
    found = recipe.jitter(images_BD, np.random.default_rng(3), pixels=2).view(-1, SIDE, SIDE)
    seen = set()
    for image_HW, shifted_HW in zip(images_NHW, found.numpy(), strict=True):
        matches = [
            (down, right) for down in range(-2, 3) for right in range(-2, 3)
            if np.array_equal(shift_by_hand(image_HW, down, right), shifted_HW)
        ]  # fmt: skip
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) == 25  # every shift occurs, so none is missed by being asked for too rarely


def test_jitter_follows_from_the_generator_and_changes_nothing_in_place(recipe: ModuleType) -> None:
    images_BD = torch.rand(20, SIDE * SIDE, generator=torch.Generator().manual_seed(0))
    before = images_BD.clone()
    first, same, other = (
        recipe.jitter(images_BD, np.random.default_rng(seed), pixels=2) for seed in (5, 5, 6)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(images_BD, before)


def test_only_a_forward_with_pixels_jitters(recipe: ModuleType) -> None:
    config = settings(recipe, "student.precision=float32").student
    data = recipe.digits(*made_up(8, 0))
    model = recipe.fresh((16,), SIDE * SIDE, 0).train()
    batch = data.batch(np.arange(8))
    plain, jittered = (
        recipe.forward_of(config, pixels=pixels)(model, batch, np.random.default_rng(0)).scores_NK
        for pixels in (0, 2)
    )
    torch.testing.assert_close(plain, model(batch.inputs["vectors"]).logits)
    assert not torch.allclose(plain, jittered)


# ---- max-norm


def test_max_norm_shortens_long_rows_and_leaves_short_ones() -> None:
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    max_norm([weight], 2.5)(LoopState(1, 1, 0.0, torch.nn.Identity()))
    torch.testing.assert_close(weight.detach(), torch.tensor([[1.5, 2.0], [0.3, 0.4]]))


def test_max_norm_refuses_a_limit_of_zero() -> None:
    with pytest.raises(ValueError, match="must be > 0, got 0"):
        max_norm([], 0.0)


def test_max_norm_holds_in_the_trained_teacher_and_is_felt(
    recipe: ModuleType, finished: Finished
) -> None:
    data, out, _ = finished
    images_NHW, labels_N, _ = recipe.read_digits(data, settings(recipe))
    place = recipe.Place(out)
    teacher = recipe.train_teacher(settings(recipe), recipe.digits(images_NHW, labels_N), place)
    lengths = torch.cat([layer.weight.detach().norm(dim=1) for layer in teacher.layers])
    limit = 2.2**0.5
    assert float(lengths.max()) <= limit * (1 + 1e-5)
    assert float((lengths > limit * 0.999).float().mean()) > 0.1


# ---- transfer sets


def test_a_transfer_set_without_threes_has_no_row_of_a_three(recipe: ModuleType) -> None:
    images_NHW, labels_N = made_up(500, 4)
    transfer = recipe.transfer_set(images_NHW, labels_N, recipe.NO_3)
    full = recipe.digits(images_NHW, labels_N)
    threes = {tuple(key) for key in full.keys_N2[labels_N == 3]}
    assert len(threes) == (labels_N == 3).sum()
    assert not threes & {tuple(key) for key in transfer.keys_N2}
    assert 3 not in transfer.gold_N
    assert len(transfer) == (labels_N != 3).sum()
    assert recipe.NO_3.known_count(len(full), len(transfer)) == (labels_N == 3).sum()


def test_a_transfer_set_of_two_classes_has_only_those(recipe: ModuleType) -> None:
    images_NHW, labels_N = made_up(500, 4)
    transfer = recipe.transfer_set(images_NHW, labels_N, recipe.ONLY_7_8)
    assert set(transfer.gold_N.tolist()) == {7, 8}
    assert recipe.ONLY_7_8.known_count(500, len(transfer)) == len(transfer)


# ---- biases


def test_prior_bias_by_hand(recipe: ModuleType) -> None:
    # Class 1 needs a bias of 1, 2 and 5 to win; halfway between the second and the third is 3.5.
    scores_NK = np.array([[1.0, 0.0], [2.0, 0.0], [7.0, 2.0]])
    assert recipe.prior_bias(scores_NK, [1], 2) == pytest.approx(3.5)
    assert recipe.prior_bias(scores_NK, [1], 1) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="from 1 to 2, got 3"):
        recipe.prior_bias(scores_NK, [1], 3)


@pytest.mark.parametrize("classes", [(3,), (7, 8)])
def test_prior_bias_gives_the_class_its_count(recipe: ModuleType, classes: tuple[int, ...]) -> None:
    scores_NK = np.random.default_rng(0).normal(size=(1000, 10)) * 4
    bias = recipe.prior_bias(scores_NK, classes, 123)
    answers_N = recipe.moved(scores_NK, classes, bias).argmax(-1)
    assert np.isin(answers_N, classes).sum() == 123


@pytest.mark.parametrize("classes", [(3,), (7, 8)])
def test_best_bias_is_as_good_as_a_search(recipe: ModuleType, classes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    gold_N = rng.integers(0, 10, 400)
    scores_NK = rng.normal(size=(400, 10)) + 3.0 * np.eye(10)[gold_N]
    scores_NK[:, list(classes)] -= 2.0

    def errors(bias: float) -> int:
        return int((recipe.moved(scores_NK, classes, bias).argmax(-1) != gold_N).sum())

    found = errors(recipe.best_bias(scores_NK, gold_N, classes))
    assert found == min(errors(float(bias)) for bias in np.linspace(-8, 8, 3201))
    assert found < errors(0.0)


# ---- the whole recipe


def test_the_distilled_student_is_nearer_to_the_teacher_than_the_plain_one(
    recipe: ModuleType, finished: Finished
) -> None:
    data, out, results = finished
    given = settings(recipe)
    images_NHW, labels_N, reported = recipe.read_digits(data, given)
    train, place = recipe.digits(images_NHW, labels_N), recipe.Place(out)
    teacher_NK = torch.from_numpy(score_rows(recipe.train_teacher(given, train, place), reported))
    distance, agreement = {}, {}
    for name in ("alone", "distilled"):
        student = recipe.fresh(given.student_hidden, SIDE * SIDE, 0)
        recipe.trained(name, 0, student, train, recipe.hard(), None, given.student, place)
        scores_NK = torch.from_numpy(score_rows(student, reported))
        distance[name] = float(forward_kl(scores_NK, teacher_NK).mean())
        agreement[name] = float((scores_NK.argmax(-1) == teacher_NK.argmax(-1)).float().mean())
    assert distance["distilled"] < 0.5 * distance["alone"]
    assert agreement["distilled"] > agreement["alone"]
    assert len(by_title(results, "student distilled")["errors"]) == 1


def test_the_bias_finds_threes_that_the_student_never_saw(finished: Finished) -> None:
    results = finished[2]
    before = by_title(results, "distilled, no 3s")
    after = by_title(results, "distilled, no 3s, bias from training images")
    assert after["bias"][0] > 0
    assert after["class_errors"][0] < before["class_errors"][0]
    best = by_title(results, "distilled, no 3s, bias best on the reported rows")
    assert best["errors"][0] <= min(before["errors"][0], after["errors"][0])


def test_no_test_row_moves_the_bias_from_training_images(
    recipe: ModuleType, finished: Finished, tmp_path: Path
) -> None:
    data, out, results = finished
    images_NHW, labels_N, _ = recipe.read_digits(data, settings(recipe))
    write_digits(tmp_path, "train", images_NHW, labels_N)
    other_NHW, _ = made_up(300, 99)
    write_digits(tmp_path, "t10k", 255 - other_NHW, np.full(300, 3, np.uint8))
    again = run(recipe, tmp_path, out)  # trained already: only the test set is another
    for name in ("no 3s", "7s and 8s only"):
        title = f"distilled, {name}, bias from training images"
        assert by_title(again, title)["bias"] == by_title(results, title)["bias"]
        title = f"distilled, {name}, bias best on the reported rows"
        assert by_title(again, title)["bias"] != by_title(results, title)["bias"]


def test_a_finished_run_trains_nothing_and_more_seeds_can_be_added(
    recipe: ModuleType, finished: Finished
) -> None:
    data, out, results = finished
    kept = {path: path.stat().st_mtime_ns for path in (out / "checkpoints").iterdir()}
    again = run(recipe, data, out)
    assert again["rows"] == results["rows"]
    assert {path: path.stat().st_mtime_ns for path in (out / "checkpoints").iterdir()} == kept
    more = run(recipe, data, out, seeds=2)
    distilled = by_title(more, "student distilled")
    assert distilled["errors"][:1] == by_title(results, "student distilled")["errors"]
    assert len(set((out / "checkpoints").iterdir()) - set(kept)) == 2


def test_another_setting_does_not_reuse_a_run(recipe: ModuleType, finished: Finished) -> None:
    data, out, _ = finished
    with pytest.raises(UsageError, match="temperature differ"):
        run(recipe, data, out, "temperature=5.0")


def test_tuning_reads_no_test_file(recipe: ModuleType, tmp_path: Path) -> None:
    write_digits(tmp_path, "train", *made_up(500, 1))
    with pytest.raises(DataError, match="t10k"):
        recipe.read_digits(tmp_path, settings(recipe))
    images_NHW, _, reported = recipe.read_digits(tmp_path, settings(recipe, "report_on=held-out"))
    assert (len(images_NHW), len(reported)) == (300, 200)
