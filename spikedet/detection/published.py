"""The numbers that the two-stage conversion paper prints for detection, for comparison.

The paper uses another protocol (PASCAL VOC with all training pictures). So compare the ratios
between the rows, not the values. The paper has no row for the float network or the quantised
network, and no numbers for its figures 8 and 9. Its figure 7 and table VI are for CIFAR-10
classifiers.
"""

from __future__ import annotations

MEASURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")

# Table X, in 0..1: (method, T) -> MEASURES
TABLE_10 = {
    ("spiking-yolo", 20): (0.002, 0.007, 0.001, 0.002, 0.005, 0.001),
    ("stage1", 20): (0.073, 0.197, 0.031, 0.036, 0.068, 0.087),
    ("two-stage", 20): (0.285, 0.641, 0.195, 0.062, 0.162, 0.335),
    ("spiking-yolo", 40): (0.079, 0.223, 0.031, 0.029, 0.052, 0.103),
    ("stage1", 40): (0.201, 0.485, 0.116, 0.046, 0.130, 0.244),
    ("two-stage", 40): (0.307, 0.664, 0.225, 0.072, 0.178, 0.361),
    ("spiking-yolo", 60): (0.165, 0.416, 0.082, 0.053, 0.092, 0.201),
    ("stage1", 60): (0.257, 0.587, 0.166, 0.057, 0.156, 0.306),
    ("two-stage", 60): (0.312, 0.668, 0.232, 0.071, 0.179, 0.367),
    ("spiking-yolo", 2000): (0.269, 0.599, 0.191, 0.067, 0.155, 0.316),
}
