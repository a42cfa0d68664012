"""The local stack of `slm up`: servers, worker, engine, deployments."""
