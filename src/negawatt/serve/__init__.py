"""An OpenAI-compatible server that hands out energy receipts and holds callers to budgets."""
