"""Published causes and rates of failures of large clusters (read by ``cloud/cluster/faults.py``)."""
