"""Both stages of conversion for any task: from a float checkpoint to a calibrated spiking one.

`stage_one` and `stage_two` compute; `pipeline` also writes the files of a run and resumes it.
"""
