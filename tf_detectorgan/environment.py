"""What commands set in the environment, where the user has not, before TensorFlow reads it."""

TENSORFLOW = {
    "TF_CPP_MIN_LOG_LEVEL": "2",  # keeps the progress bars readable
    "TF_ENABLE_ONEDNN_OPTS": "1",  # TensorFlow's own default is off without AVX-512 (docs/decisions/0127)
}
