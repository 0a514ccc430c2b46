"""Generated from protos/kubelet/ by `make proto`; never edited."""
