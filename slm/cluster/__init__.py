"""Jobs for the schedulers of clusters: scripts for Slurm, manifests for Kubernetes."""
