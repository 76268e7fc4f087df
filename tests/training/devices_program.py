"""The process of test_build.py: devices_program.py DATA_DIR RUNS FLAGFILE:GPUS ...

Takes the first step of each flagfile's base GAN, in small, on so many of eight CPU devices in place of GPUs.
Only one of them may use several: strategies of one process share the keys of their collective sums.
Prints a JSON line for each: GPUs, how many of them trained, steps that were done.
"""

import dataclasses
import json
import sys
from pathlib import Path

import tensorflow as tf

from tf_detectorgan import checkpoints, config
from tf_detectorgan.data import object_residuals
from tf_detectorgan.training import build, phases, run_directory
from tf_detectorgan.training.run import build_gan_training
from tf_detectorgan.training.settings import ARMS, Train

SMALL = {
    "generator_filters": 2,
    "discriminator_filters": 2,
    "generator_blocks": 1,
    "crop_size": 16,
    "pretrain_gan_steps": 1,
}


def first_step(flagfile, count, data_dir, run_dir):
    given = config.parse(Train, [f"--flagfile={flagfile}"])
    settings = dataclasses.replace(given, **SMALL, data_dir=data_dir, run_dir=str(run_dir))
    cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
    build.gpus = lambda: cpus[:count]
    run = run_directory.begin(settings, run_directory.Workers())
    kind = ARMS[settings.arm[-1]].gan
    directory = run.layout.pretrain_gan(kind)
    phases.train_gan(run, directory, build_gan_training(run, kind), range(settings.pretrain_gan_steps))
    done = checkpoints.finished(directory)
    return {"gpus": count, "used": run.strategy.num_replicas_in_sync, "steps": done["steps"]}


if __name__ == "__main__":
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 8
    )
    object_residuals.CROPS = 200  # for speed
    data, runs, *wanted = sys.argv[1:]
    for number, one in enumerate(wanted):
        path, gpus = one.rsplit(":", 1)
        print(json.dumps(first_step(path, int(gpus), data, Path(runs) / str(number))))
