"""Tests on a real Kubernetes: API server, scheduler, controller manager, kubelet and containerd on one node."""
