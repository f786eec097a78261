"""What is measured, beside other tools where there are any, and the kills, damage and mutants that must not go unnoticed."""
