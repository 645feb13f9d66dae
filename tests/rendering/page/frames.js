// Results of Prometheus as Grafana's data frames, with the options of the panel applied to them.
import {
  applyFieldOverrides,
  cacheFieldDisplayNames,
  FieldConfigOptionsRegistry,
  FieldType,
  standardTransformers,
  standardTransformersRegistry,
  toDataFrame,
  transformDataFrame,
} from '@grafana/data';
import { firstValueFrom } from 'rxjs';

standardTransformersRegistry.setInit(() =>
  Object.values(standardTransformers)
    .filter((one, index, all) => one?.id && all.findIndex((other) => other?.id === one.id) === index)
    .map((transformer) => ({ id: transformer.id, name: transformer.name, transformation: () => Promise.resolve(transformer) })),
);

const STANDARD = ['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'color', 'thresholds', 'mappings', 'links'];
const CUSTOM = [
  'drawStyle', 'lineWidth', 'lineInterpolation', 'lineStyle', 'fillOpacity', 'showPoints', 'pointSize', 'spanNulls',
  'stacking', 'scaleDistribution', 'axisPlacement', 'axisBorderShow', 'thresholdsStyle', 'align', 'cellOptions', 'width', 'minWidth',
  'inspect',
];

// What a panel may override. In Grafana each panel plugin registers its own; here all have the same.
const REGISTRY = new FieldConfigOptionsRegistry(() => [
  ...STANDARD.map((path) => item(path, path, false)),
  ...CUSTOM.map((path) => item(`custom.${path}`, path, true)),
]);

function item(id, path, isCustom) {
  return { id, path, name: id, isCustom, shouldApply: () => true, process: (value) => value, settings: {} };
}

function legend(format, labels) {
  return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? '');
}

function number(text) {
  const value = Number(text);
  return text === '+Inf' || text === '-Inf' || Number.isNaN(value) ? null : value;
}

function asSeries(result) {
  return result.series.map((one) => {
    const points = one.values ?? [one.value];
    const config = { displayNameFromDS: legend(result.legend, one.metric) };
    return toDataFrame({
      refId: result.refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: points.map(([time]) => time * 1000), config: {} },
        { name: 'Value', type: FieldType.number, values: points.map(([, text]) => number(text)), labels: one.metric, config },
      ],
    });
  });
}

function asTable(result) {
  const labels = [...new Set(result.series.flatMap((one) => Object.keys(one.metric)))].sort();
  const column = (name) => ({
    name, type: FieldType.string, config: {}, values: result.series.map((one) => one.metric[name] ?? ''),
  });
  return toDataFrame({
    refId: result.refId,
    fields: [
      { name: 'Time', type: FieldType.time, config: {}, values: result.series.map((one) => one.value[0] * 1000) },
      ...labels.map(column),
      { name: `Value #${result.refId}`, type: FieldType.number, config: {}, values: result.series.map((one) => number(one.value[1])) },
    ],
  });
}

// The frames of a panel, ready to be drawn.
export async function framesOf(panel, results, theme) {
  let data = panel.type === 'table' ? results.map(asTable) : results.flatMap(asSeries);
  if (panel.transformations?.length) {
    data = await firstValueFrom(transformDataFrame(panel.transformations, data));
  }
  const frames = applyFieldOverrides({
    data,
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: REGISTRY,
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
  cacheFieldDisplayNames(frames);
  return frames;
}
