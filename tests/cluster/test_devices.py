import pytest

from tf_detectorgan.cluster.devices import require_gpus
from tf_detectorgan.errors import InputError

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def test_pod_whose_gpus_tensorflow_does_not_find_is_an_error(tmp_path):
    for name in ("nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    require_gpus(0, POD, tmp_path)  # no GPU was given
    (tmp_path / "nvidia3").touch()
    with pytest.raises(InputError, match=r"this pod has \S+/nvidia3, but TensorFlow finds none"):
        require_gpus(0, POD, tmp_path)
    require_gpus(1, POD, tmp_path)
    require_gpus(0, POD | {"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path)
    require_gpus(0, {}, tmp_path)  # a desktop with a CPU build of TensorFlow
