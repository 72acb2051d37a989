"""Both stages of the conversion, for any task: from a float to a calibrated spiking checkpoint.

`stage_one` and `stage_two` compute. `calibration` and `conversion` also write the files of a run,
and resume a run.
"""
