"""What stages share: parameters, processes, trainings, problems, measures, pictures."""
