"""Many processes on one study: on a Slurm cluster, or on the processors and GPUs of one machine."""
