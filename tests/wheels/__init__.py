"""What a wheel must be, so that it works on machines without a compiler."""
