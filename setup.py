"""Which packages there are: all of spikedet/, and two folders of data beside it.

Everything else stands in pyproject.toml.
"""

from setuptools import find_namespace_packages, find_packages, setup

data = ["configs", *(f"configs.{name}" for name in find_namespace_packages("configs")), "weights"]
code = find_packages(include=["spikedet*"])
setup(packages=[*code, "spikedet.kernels.csrc", *(f"spikedet.{name}" for name in data)])
