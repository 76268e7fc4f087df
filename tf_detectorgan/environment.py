"""Defines the environment variables that commands set, unless the user has, before importing TensorFlow."""

TENSORFLOW = {
    "TF_CPP_MIN_LOG_LEVEL": "2",  # keeps progress bars readable
    "TF_ENABLE_ONEDNN_OPTS": "1",  # TensorFlow's own default is off without AVX-512 (docs/decisions/0127)
}
