import pytest

from tf_detectorgan.errors import InputError
from tf_detectorgan.preflight import child
from tf_detectorgan.training.settings import Train


def test_short_run_reports_bad_data_before_its_first_phase(tiny_phantom, tmp_path, monkeypatch, handlers):
    monkeypatch.setattr(child, "run_arms", lambda run: pytest.fail("a phase has started"))
    data = tiny_phantom("without_clean", clean_images=0)
    settings = Train(run_dir=str(tmp_path), data_dir=str(data), arm=("superpose",), deterministic=False)
    with pytest.raises(InputError, match="need clean and labelled training images"):
        child.main(settings)
    assert not (tmp_path / "devices.json").exists()
