"""What Dagster's runs leave behind when their processes are killed, and how that is put right.

worker.py      which process executes a run, and whether it is still there
executor.py    every run names its worker and marks its processes; lost runs are settled before it begins
pool.py        how many of them may use a device at a time
lost.py        true endings for runs whose worker is gone, and the end of processes whose run is over
endings.py     true endings in MLflow
sensors.py     the same every half minute, where a daemon runs
"""
