from pathlib import Path

import numpy as np

from enginehouse.demo.digits import CALIBRATION, HELD_OUT, load_digits


def test_held_out_images_are_in_neither_training_nor_calibration(tmp_path: Path) -> None:
    digits = load_digits()
    digits.save_calibration(tmp_path / "calibration.npz")
    digits.save_verification(tmp_path / "held-out.npz")
    with np.load(tmp_path / "calibration.npz") as calibration, np.load(tmp_path / "held-out.npz") as held_out:
        assert len(calibration["images"]) == CALIBRATION and len(held_out["images"]) == HELD_OUT
        seen = {image.tobytes() for image in digits.train_images} | {image.tobytes() for image in calibration["images"]}
        assert not seen & {image.tobytes() for image in held_out["images"]}
        assert set(held_out["labels"]) == set(range(10))


def test_the_split_is_the_same_every_time() -> None:
    first, second = load_digits(), load_digits()
    assert np.array_equal(first.test_images, second.test_images)
    assert len(first.train_images) + len(first.test_images) == 1797
    assert first.train_images.dtype == np.float32 and 0 <= first.train_images.min() <= first.train_images.max() <= 1
