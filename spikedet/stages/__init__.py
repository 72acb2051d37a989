"""Both stages of the conversion, for any task: from a float to a calibrated spiking checkpoint.

`stage_one` and `stage_two` compute. `pipeline` also writes the files of a run and resumes a run.
"""
