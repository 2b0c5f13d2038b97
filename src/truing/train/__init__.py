"""The one training loop and what it needs: loop, learner, optim, checkpoint."""
