"""Programs of a job, compiled for TPUs that are not there."""
